r"""Clipping and skipped steps: what becomes of norm and breaks where the kick is taken away.

A break restores the norm by a few long gradients. A gradient that is clipped to c in every step
cannot do that, but it has a balance of its own: with g <- c g / |g|,

    rho'^2 = a^2 rho^2 + eta^2 c^2,   a = 1 - eta lambda,

settles at rho_c = eta c / sqrt(1 - a^2), near c sqrt(eta / (2 lambda)). The turn per step is there
that of every equilibrium, near sqrt(2 eta lambda). Li et al. 2022 (arXiv 2202.00980) clip there on
purpose, by a limit that follows the norm. No torch at import.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.periods import find_destabilizations, late


def clipped_norm(lr: float, weight_decay: float, limit: float) -> float:
    """Return the norm at which weights settle whose every gradient has the norm `limit`.

    rho_c = eta c / sqrt(1 - (1 - eta lambda)^2); arrays are taken element by element.

    >>> round(clipped_norm(0.1, 0.2, limit=1.0), 4)
    0.5025
    """
    kept = 1 - np.asarray(lr) * np.asarray(weight_decay)
    norm = np.asarray(lr) * limit / np.sqrt(1 - kept**2)
    return float(norm) if norm.ndim == 0 else norm


def adaptive_limits(results: xr.Dataset) -> xr.DataArray:
    """Return ZClip's limit of every step, (run, step), infinity where there is none.

    By `guards.AdaptiveLimit`, from the norms of the gradients as they were before it: those of a
    record of every step, of runs whose other parameters are fixed.
    """
    import torch

    from periodic_lib.engine.guards import AdaptiveLimit

    limit = AdaptiveLimit(torch.tensor(results.clip_above.fillna(np.inf).values[:, None]))
    norms = results.grad_norm.transpose("step", "run").values.astype(float)
    found = [limit.of(torch.tensor(row[:, None])).squeeze(1) for row in norms]
    return xr.DataArray(
        torch.stack(found).numpy().T, results.grad_norm.coords, ("run", "step"), "limit"
    )


def guard_table(results: xr.Dataset, from_share: float = 0.6) -> pd.DataFrame:
    """Return what became of every run with a clipped gradient or skipped steps, one row each.

    Parameters
    ----------
    results : a record of every step.
    from_share : the share of the record from which the growth of the rate is counted.

    Returns
    -------
    table with the run's `run`, `seed`, `clip_norm`, `clip_above` and `skip_above` (nan: none);
    `breaks` and `late_breaks` (of the second half); `elr_break` and `peak_loss`, medians of its
    breaks (nan without any); of the second half `norm`, `loss` and `turn` (medians; of the turn the
    root mean square), `worst` (the largest loss), and `clipped` (the share of steps whose gradient
    is longer than the limit); of the last tenth `norm_end`, its median, and `grown`, the median
    rate over that of the tenth before `from_share`.
    """
    breaks, steps = find_destabilizations(results), results.sizes["step"]
    limit = np.minimum(adaptive_limits(results), results.clip_norm.fillna(np.inf))
    second = late(results.assign(clipped=results.grad_norm > limit))
    last, middle = (
        results.elr.isel(step=slice(round((end - 0.1) * steps), round(end * steps))).median("step")
        for end in (1.0, from_share)
    )
    table = pd.DataFrame(
        {
            "run": results.run.values,
            "seed": results.init_seed.values,
            "clip_norm": results.clip_norm.values.astype(float),
            "clip_above": results.clip_above.values.astype(float),
            "skip_above": results.skip_above.values.astype(float),
            "norm": second.weight_norm.median("step").values,
            "loss": second.train_loss.median("step").values,
            "turn": np.sqrt((second.angular_update**2).mean("step")).values,
            "worst": second.train_loss.max("step").values,
            "clipped": second.clipped.mean("step").values,
            "norm_end": results.weight_norm.isel(step=slice(round(0.9 * steps), None))
            .median("step")
            .values,
            "grown": (last / middle).values,
        }
    )
    return table.join(_of_breaks(breaks, results, int(second.step[0])), on="run")


def _of_breaks(breaks: pd.DataFrame, results: xr.Dataset, begin: int) -> pd.DataFrame:
    """Return `breaks`, `late_breaks`, `elr_break`, `peak_loss` by run."""
    at = results.elr.sel(
        run=xr.DataArray(breaks["run"].to_numpy(int), dims="event"),
        step=xr.DataArray(breaks["start"].to_numpy(int), dims="event"),
    )
    groups = breaks.assign(elr=at.values, late=breaks["start"] >= begin).groupby("run")
    found = groups.agg(
        breaks=("start", "size"),
        late_breaks=("late", "sum"),
        elr_break=("elr", "median"),
        peak_loss=("peak_loss", "median"),
    ).reindex(results.run.values)
    return found.fillna({"breaks": 0, "late_breaks": 0})
