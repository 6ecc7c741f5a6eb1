r"""Where a monitored training stands and what comes: the state of each group, the earliest next
jump, an interval from the run's own past, what its schedule has time for, and what to change.

One run at a time, as `Monitor.results` has it. NumPy and pandas only.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from periodic_lib import theory
from periodic_lib.analysis.forecasts import FRACTIONS, METHODS, back_test
from periodic_lib.analysis.levels import passages
from periodic_lib.analysis.periods import MIN_RISE, label_phases
from periodic_lib.analysis.regimes import BUDGET_BORDER, WINDOW

STATES = (
    "no scale-invariant weights",
    "fixed norm",
    "no decay",
    "jump",
    "turning",
    "free decay",
    "equilibrium",
    "cannot tell",
)
STILL = 1e-5  # of ln rho over the last rows: the norm does not move
RECENT = 100  # rows
JUMP_ROWS = 50  # a rise that began within the last of these is a jump that goes on
DELTA = 0.03  # of a jump: a turn by 14 degrees
NEAR = 2.0  # times the norm below which an epsilon shows: a group whose norm is lower is named
TURNED = 1e-2  # cosine of weights and gradient, zero for scale-invariant ones: from here on as well
FAILED = 0.02  # about: epsilon over variance at that norm, where outputs change by 1 %
SHARES = FRACTIONS[1:]  # of a passage, when its forecasts were made
DUE_COLUMNS = ["point", "low", "high", "off", "covered", "tried"]


def optimizer_of(results: xr.Dataset) -> str:
    """Return the optimizer's name, as the data set has it."""
    return json.loads(results.attrs["setup"])["optimizer"]


def decay_rates(results: xr.Dataset) -> NDArray:
    """Return what weight decay takes from ln rho^2 a step, (steps,): 2 lr weight_decay / (1 - mu).

    nan for Adam with the decay in its gradient, where it has no such pace.
    """
    one = results.isel(run=0)
    momentum = float(one.momentum)
    if optimizer_of(results) not in ("sgd", "adamw"):
        return np.where(one.decay.values > 0, np.nan, 0.0)
    return 2 * one.learning_rate.values * one.decay.values / (1 - momentum)


def one_group(results: xr.Dataset, group: str | None) -> dict[str, NDArray]:
    """Return norm, effective gradient, rates of a group, or of all invariant weights (None)."""
    one = results.isel(run=0)
    prefix = "" if group is None else "group_"
    if group is not None:
        one = one.sel(group=group)
    names = ("weight_norm", "eff_grad_norm", "learning_rate", "decay")
    return {name: one[prefix + name].values for name in names}


def state(results: xr.Dataset, group: str | None = None) -> str:
    """Return the present state of a group, or of all scale-invariant weights: one of `STATES`.

    - "fixed norm": the norm does not move; "no decay": it moves, and nothing shrinks it;
    - "jump": ln rho^2 has risen by `periods.MIN_RISE` within the last 50 rows;
    - over the last rows in which decay takes a tenth of rho^2, the share of it that the norm gets
      back is at least `regimes.BUDGET_BORDER`: "equilibrium"; less: "free decay", or "turning"
      where the effective gradient has risen clearly since its minimum (phase B of `periods`);
    - "cannot tell": too little decay so far, or none of these.
    """
    if not results.attrs["groups"]:
        return STATES[0]
    one, rates = one_group(results, group), decay_rates(results)
    level = 2 * np.log(one["weight_norm"])
    if len(level) < JUMP_ROWS:
        return "cannot tell"
    if np.ptp(level[-RECENT:]) < 2 * STILL:
        return "fixed norm"
    if not np.nanmax(one["decay"][-RECENT:] * one["learning_rate"][-RECENT:]) > 0:
        return "no decay"
    if level[-1] - level[-JUMP_ROWS:].min() >= MIN_RISE:
        return "jump"
    taken = np.cumsum(rates * results.covers.values)
    back = int(np.searchsorted(-taken[::-1], WINDOW - taken[-1])) + 1  # rows
    if not np.isfinite(taken[-1]) or back >= len(level):
        return "cannot tell"
    share = 1 + (level[-1] - level[-1 - back]) / (taken[-1] - taken[-1 - back])
    if share >= BUDGET_BORDER:
        return "equilibrium" if share < 2 - BUDGET_BORDER else "cannot tell"
    return "turning" if _turns(one) else "free decay"


def _turns(one: dict[str, NDArray]) -> bool:
    """Whether the effective gradient has begun to rise since the last break, or the start."""
    phases = label_phases(one["weight_norm"], eff_grad_norm=one["eff_grad_norm"])
    return bool(phases[-1] == "B")


def free_decay_share(results: xr.Dataset) -> float:
    """Return how fast ln rho^2 fell over the last rows, in units of what weight decay takes."""
    rates = decay_rates(results)
    rows = min(RECENT, len(rates) - 1)
    if rows < 1:
        return np.nan
    level = 2 * np.log(one_group(results, None)["weight_norm"])
    taken = float((rates * results.covers.values)[-1 - rows : -1].sum())
    return float((level[-1 - rows] - level[-1]) / taken) if taken > 0 else np.nan


def over_equilibrium(results: xr.Dataset) -> float:
    """Return rho*^2 / rho^2, the step on the sphere in units of that at the equilibrium norm.

    rho* is the balance for the recent effective gradients (SGD, with momentum) or of AdamW; nan
    elsewhere and without decay.
    """
    one, kind = one_group(results, None), optimizer_of(results)
    if not len(one["decay"]) or not one["decay"][-1] * one["learning_rate"][-1] > 0:
        return np.nan
    rates = one["learning_rate"][-1], one["decay"][-1]
    if kind == "sgd":
        gradient = np.sqrt(np.nanmean(one["eff_grad_norm"][-RECENT:] ** 2))
        balance = theory.equilibrium_norm(*rates, gradient, float(results.momentum[0]))
    elif kind == "adamw":
        weights = results.attrs["followed"]
        balance = theory.equilibrium_norm_adamw(*rates, weights, float(results.beta1[0]))
    else:
        return np.nan
    return float(balance**2 / one["weight_norm"][-1] ** 2)


def not_invariant(results: xr.Dataset) -> pd.DataFrame:
    """Return the groups whose scale the outputs feel, or soon do: an epsilon is no longer small.

    Index: the group. Columns `norm`, the present one; `fails_below`, the norm below which the
    probe saw the outputs change by 1 % (nan: not known); `cosine`, the median of |cos(w, g)| over
    the last 100 rows. A group is in it if its norm is below `NEAR` times that, or the cosine above
    `TURNED`.
    """
    columns = ["norm", "fails_below", "cosine"]
    count = results.attrs["groups"]
    if not count or "fails_below" not in results.coords or not results.sizes["step"]:
        return pd.DataFrame(columns=columns, dtype=float)
    one = results.isel(run=0, group=slice(count))
    cosine = np.abs(one.group_radial_cosine.values[-RECENT:])
    values = one.group_weight_norm.values[-1], one.fails_below.values, np.median(cosine, axis=0)
    table = pd.DataFrame(dict(zip(columns, values, strict=True)), one.group.values)
    return table[(table.norm < NEAR * table.fails_below) | (table.cosine > TURNED)]


def edge_ratio(results: xr.Dataset) -> tuple[float, float]:
    """Return sharpness of the batch times the step on the sphere: now, and before breaks (median).

    Of SGD, where the sharpness was measured (`edge_every`); else nan. A quadratic is unstable
    above 2; batches of a network stand above that for most of a period, so that only its own past
    is a measure.
    """
    if "batch_sharpness" not in results or optimizer_of(results) != "sgd":
        return np.nan, np.nan
    at, steps = results.edge_step.values, results.step.values
    ratios = results.batch_sharpness.values[0] * np.interp(at, steps, results.elr.values[0])
    places = np.searchsorted(at, breaks_and_passages(results).start, side="right") - 1
    before = ratios[places[places >= 0]]
    return float(ratios[-1]), float(np.median(before)) if len(before) else np.nan


# ---------------------------------------------------------------- what comes


def breaks_and_passages(results: xr.Dataset) -> pd.DataFrame:
    """Return `levels.passages` of the run, in steps and effective learning rates."""
    norms = results[["weight_norm", "elr"]].drop_vars("group", errors="ignore")
    return passages(norms.assign(train_loss=norms.weight_norm))


def not_before(results: xr.Dataset) -> float:
    """Return the step before which no jump of this kind comes, at the present rates; nan: unknown.

    For SGD `theory.jump_not_before`, with the largest effective gradient of this run (of momentum:
    with lr / (1 - mu), to first order). For others: when decay alone takes the norm to the highest
    one at which it has broken so far; nan before the first break.
    """
    if not results.attrs["groups"] or not results.sizes["step"]:
        return np.nan
    one, now = one_group(results, None), results.attrs["steps_done"] - 1  # the last norm's step
    lr, decay, norm = (float(one[n][-1]) for n in ("learning_rate", "decay", "weight_norm"))
    if optimizer_of(results) == "sgd":
        rate = lr / (1 - float(results.momentum[0]))
        largest = float(np.nanmax(one["eff_grad_norm"]))
        if not rate * decay > 0:
            return np.inf
        return now + float(theory.jump_not_before(rate, decay, norm, 0.0, largest, DELTA))
    found, pace = breaks_and_passages(results), decay_rates(results)[-1]
    if found.empty or not pace > 0:
        return np.nan
    level = float(np.log(found["break"].min() * norm**2 / lr))
    return now + max(0.0, level) / pace


def until(results: xr.Dataset, step: float) -> xr.Dataset:
    """Return the record as it was before `step`, for a back-test."""
    before = results.isel(step=results.step.values + results.covers.values <= step)
    return before.assign_attrs(steps_done=int(step))


def due(results: xr.Dataset) -> pd.DataFrame:
    """Return when the next break is due, by each forecast of `forecasts.back_test` that is one.

    Returns
    -------
    table with a row for "clock" (as long as before), "level" and "thresholds": `point`, the step;
    `low` and `high`, the forecast times the 10th and 90th percentile of what past forecasts were
    off by; `off`, their median error in this run, a share of the passage; `covered` of `tried`,
    the passages that lay within such an interval made from the others. No rows before six breaks
    and where the pace of the decay is not known.
    """
    found, pace = breaks_and_passages(results), decay_rates(results)[-1:]
    if len(found) < 6 or not pace.size or not pace[0] > 0:
        return pd.DataFrame(columns=DUE_COLUMNS, dtype=float)
    steps, elr, now = results.step.values, results.elr.values[0], float(results.attrs["steps_done"])
    ends = pd.DataFrame({"begin": found.end, "finish": found.end + found.steps})
    ends = ends.assign(restart=found.restart, **{"break": found.next})
    made = back_test(steps, elr, ends.dropna(), float(pace[0]), SHARES)
    open_one = ends.iloc[[-1]].assign(finish=now, **{"break": elr[-1]})
    with_it = pd.concat([ends.dropna(), open_one], ignore_index=True)
    said = back_test(steps, elr, with_it, float(pace[0]), (1.0,)).iloc[-1]
    rows, begin = {}, open_one.begin.iloc[0]
    for name in METHODS[:3]:
        low, high = begin + said[name] * np.quantile(made.length / made[name], (0.1, 0.9))
        off = np.abs(made[name] / made.length - 1).median()
        edges = max(low, now), max(high, now)
        rows[name] = (begin + said[name], *edges, off, *_covered(made, name))
    return pd.DataFrame.from_dict(rows, "index", columns=DUE_COLUMNS)


def interval(results: xr.Dataset) -> dict[str, float] | None:
    """Return the steps between which the next break is due by the run's own past, or None.

    The best of the forecasts in `due` that rest on levels, if its median error in this run is below
    that of "as long as before"; else there is none. `low`, `high`, `covered` and `tried` are its
    own; `clock`: the passages that an interval made so from the clock would have covered.
    """
    table = due(results)
    if table.empty:
        return None
    best = table.off[["level", "thresholds"]].idxmin()
    if not table.off[best] < table.off["clock"]:
        return None
    facts = {name: int(table[name][best]) for name in ("covered", "tried")}
    ends = {name: float(table[name][best]) for name in ("low", "high")}
    return ends | facts | {"clock": int(table.covered["clock"]), "by": best}


def _covered(made: pd.DataFrame, name: str) -> tuple[int, int]:
    """Return how many passages lay in the interval that the others give, of how many."""
    ratio, inside = made.length / made[name], []
    for number in made.number.unique():
        mine = made.number == number
        if (~mine).any():
            low, high = np.quantile(ratio[~mine], (0.1, 0.9))
            inside.append(bool(ratio[mine].between(low, high).mean() >= 0.5))
    return int(np.sum(inside)), len(inside)


def periods_left(results: xr.Dataset, schedule: NDArray | None = None) -> float:
    """Return 2 lambda sum(eta) / ln(span), periods that the schedule has time for; nan: unknown.

    `schedule`: the learning rates to come; None: the present one until `total_steps`. The span is
    the median of this run's passages.
    """
    found, rates = breaks_and_passages(results), decay_rates(results)
    span = found.span.median() if len(found) > 1 else np.nan
    left = results.attrs["total_steps"] - results.attrs["steps_done"]
    if schedule is None:
        schedule = (
            np.full(max(0, left), float(results.lr[0])) if results.attrs["total_steps"] else None
        )
    if schedule is None or not len(rates) or not span > 0:
        return np.nan
    return float(rates[-1] / float(results.lr[0]) * np.sum(schedule) / span)


def advice(results: xr.Dataset, factor: float = 0.5) -> pd.Series:
    """Return remedies, each with its effect in words computed from the present rates.

    Empty where the state gives no reason to change anything.
    """
    now, pace = state(results), decay_rates(results)[-1:]
    if now not in ("free decay", "turning", "jump") or not pace.size or not pace[0] > 0:
        return pd.Series(dtype=str)
    squared = 2 if optimizer_of(results) == "sgd" else 1  # of rho, in the step on the sphere
    gained = np.log(1 / factor) / (pace[0] * factor) * 2 / squared
    stretched = 1 / factor
    return pd.Series(
        {
            "learning rate": f"lr x {factor:g}: the step on the sphere is {factor:g} of now at "
            f"once, and decay needs {gained:,.0f} steps to make up for it",
            "weight decay": f"weight decay x {factor:g}: the norm falls {stretched:g} times as "
            "slowly, and periods last about as much longer",
            "norm": "hold the scale-invariant weights at their present norm (rescale them after "
            "each step): no further jump of this kind",
            "exclude": "decay only the other weights, and hold the norm of these: the same, and "
            "the regularization of the others stays",
            **_epsilon_advice(results),
            "clipping": "do not skip the steps of a break: the next batch breaks, too. A fixed "
            "limit on the gradient's norm, below a break's, held the norm up instead (chapter 18)",
        }
    )


def _epsilon_advice(results: xr.Dataset) -> dict[str, str]:
    """Return what a larger epsilon would do, where the probe found what the present one does."""
    count = results.attrs["groups"]
    if "fails_below" not in results.coords:
        return {}
    norms = results.group_weight_norm.values[0, -1, :count]
    limits = results.fails_below.values[:count]
    known = limits > 0
    if not known.any():
        return {}
    times = float(np.median((norms[known] / limits[known]) ** 2)) / FAILED
    return {
        "epsilon": f"an epsilon of the normalization ends periods only once it counts beside the "
        f"variances: at the present norms about {times:.0e} times as large; it lifts the loss"
    }


# ---------------------------------------------------------------- in words


def report(results: xr.Dataset, spikes: pd.DataFrame, schedule: NDArray | None = None) -> str:
    """Return up to eight lines: groups, state, spikes, what comes, what the schedule has time for,
    what to change; and one more where an epsilon begins to show.
    """
    lines = [_groups_line(results), _state_line(results), _spikes_line(spikes)]
    lines += [_epsilon_line(results)]
    if results.attrs["groups"]:
        lines += [_next_line(results), _schedule_line(results, schedule)]
    remedies = advice(results)
    chosen = [name for name in ("learning rate", "norm", "clipping") if name in remedies]
    return "\n".join([*filter(None, lines), *(remedies[name] + "." for name in chosen)])


def _groups_line(results: xr.Dataset) -> str:
    facts = results.attrs
    if not facts["groups"]:
        return "No scale-invariant weights: what follows does not rest on weight decay and norms."
    share = facts["invariant"] / facts["weights"]
    return (
        f"{facts['groups']} scale-invariant groups, {share:.1%} of {facts['weights']:,} weights; "
        f"{facts['steps_done']:,} steps."
    )


def _state_line(results: xr.Dataset) -> str:
    now, ratio, share = state(results), over_equilibrium(results), free_decay_share(results)
    line = f"State: {now}."
    if np.isfinite(ratio):
        line += f" Step on the sphere {ratio:.2g} x its equilibrium value;"
        line += f" norm shrinks at {share:.2f} of what decay takes."
    edge, before = edge_ratio(results)
    if np.isfinite(edge):
        past = f"{before:.2g} before breaks" if np.isfinite(before) else "no break yet"
        line += f" Sharpness of the batch x step {edge:.2g} ({past})."
    return line


def _epsilon_line(results: xr.Dataset) -> str:
    found = not_invariant(results)
    if found.empty:
        return ""
    name, one = found.index[0], found.iloc[0]
    line = f"{name}: "
    if one.norm < NEAR * one.fails_below:
        line += f"norm {one.norm:.2g}, and below {one.fails_below:.2g} an epsilon shows"
    else:
        line += f"its gradient has a cosine of {one.cosine:.2g} with it: not scale-invariant"
    more = f" (and {len(found) - 1} more groups)" if len(found) > 1 else ""
    return line + more + ". Where an epsilon shows, decay raises the step no further."


def _spikes_line(spikes: pd.DataFrame) -> str:
    if spikes.empty:
        return "Spikes of the loss: none."
    at = "; ".join(f"{int(step):,}" for step in spikes.start.tail(5))
    counts = spikes.cause.value_counts()
    causes = ", ".join(f"{name} {count}" for name, count in counts.items())
    more = "the last at steps " if len(spikes) > 5 else "at steps "
    return f"Spikes of the loss: {len(spikes)} ({more}{at}). By cause: {causes}."


def _next_line(results: xr.Dataset) -> str:
    earliest, due = not_before(results), interval(results)
    if np.isnan(earliest):
        return "Next: cannot tell."
    if np.isinf(earliest):
        return "Next: no jump of this kind, since no weight decay shrinks these weights."
    line = f"Next jump: not before step {earliest:,.0f}."
    if earliest < results.attrs["steps_done"]:
        line = "Next jump: from now on possible, with a gradient as large as the largest so far."
    if due is None:
        return line + " No interval: the run's own past does not beat 'as long as before', so far."
    return (
        f"{line} From this run's past: {due['low']:,.0f}-{due['high']:,.0f} (covered "
        f"{due['covered']} of {due['tried']}; past-period guess {due['clock']})."
    )


def _schedule_line(results: xr.Dataset, schedule: NDArray | None) -> str:
    left = periods_left(results, schedule)
    if np.isnan(left):
        return ""
    total = results.attrs["total_steps"]
    line = f"Your schedule ends at step {total:,}: " if total else "Your schedule: "
    return line + ("it ends before the next." if left < 0.5 else f"room for about {left:.1f} more.")
