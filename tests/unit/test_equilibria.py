"""Runs against the equilibrium presumption: synthetic runs whose answer is known."""

import numpy as np
import pytest
import xarray as xr

from periodic_lib import Run, Setup, grid, theory
from periodic_lib.analysis import equilibria

LR, WD = 0.5, 0.01


def run_of(gradients, start=None):
    """Return the results of norm recursions with these effective gradient norms, (runs, steps)."""
    gradients = np.asarray(gradients, float)
    norms = np.empty_like(gradients)
    norm = theory.equilibrium_norm(LR, WD, gradients[:, 0]) if start is None else np.full(len(gradients), start)
    for t in range(gradients.shape[1]):
        norms[:, t] = norm
        norm = theory.next_norm(LR, WD, norm, gradients[:, t])
    rows = {"weight_norm": norms, "eff_grad_norm": gradients, "elr": LR / norms**2}
    rows["angular_update"] = theory.angular_update(LR, WD, norms, gradients)
    runs = range(len(gradients))
    data = xr.Dataset({name: (("run", "step"), values) for name, values in rows.items()}, {"run": list(runs)})
    every = {"lr": LR, "weight_decay": WD, "momentum": 0.0, "beta1": 0.9}
    data = data.assign_coords({name: ("run", [value for _ in runs]) for name, value in every.items()})
    return data.assign_coords(init_seed=("run", list(runs))).assign_attrs(steps_per_epoch=10)


@pytest.fixture(scope="module")
def noisy():
    """Gradients whose square is exponentially distributed: v = 1."""
    square = np.random.default_rng(0).exponential(size=(8, 8000))
    return run_of(3 * np.sqrt(square))


class TestFormulas:
    def test_a_steady_gradient_meets_all(self):
        found = equilibria.against_formulas(run_of(np.full((1, 400), 2.0)))
        for name in ("norm", "elr", "angle", "typical", "now", "next"):
            assert found[name][0] == pytest.approx(1, abs=1e-12)
        assert found.variance[0] == pytest.approx(0, abs=1e-12)

    def test_noise_raises_the_rate_by_half_the_variance(self, noisy):
        """s^2 = lr wd v^2 / 2, and the mean of 1 / rho^2 is above its formula by s^2 / 2."""
        found = equilibria.against_formulas(noisy).mean()
        assert found.variance == pytest.approx(LR * WD / 2, rel=0.15)
        assert 0 < found.elr - 1 < found.variance * 1.5
        assert found.norm == pytest.approx(1, abs=0.01)
        assert found.angle == pytest.approx(1, abs=0.01)

    def test_the_forecast_sees_a_gradient_that_changes(self, noisy):
        assert equilibria.next_stretch(noisy) == pytest.approx(1, abs=0.02)
        gradients = np.full((1, 4000), 2.0)
        gradients[:, 3000:] = 8.0  # four times: twice the norm
        assert equilibria.next_stretch(run_of(gradients))[0] == pytest.approx(0.5, abs=0.02)

    def test_adamw_uses_its_own(self):
        data = run_of(np.full((1, 100), 2.0))
        norm, angle = equilibria.formulas(data, None, weights=400)
        assert float(norm[0]) == theory.equilibrium_norm_adamw(LR, WD, 400, 0.9)
        assert float(angle[0]) == theory.equilibrium_angle_adamw(LR, WD, 0.9)

    def test_the_running_average_is_the_recursion_up_to_order_lr_wd(self, noisy):
        assert equilibria.running_error(noisy.isel(run=0)) < 3 * LR * WD

    def test_run_table_names_settings(self):
        data = run_of(np.full((2, 400), 2.0)).assign_attrs(classes=10)
        data["train_loss"] = data.weight_norm * 0 + 0.1
        table = equilibria.run_table({", small": data}, weights=5)
        assert table.setting.tolist() == ["lr 0.5, small"] * 2
        assert equilibria.by_run(table, equilibria.near_one(table, ["norm", "next"], 0.01)) == {
            "lr 0.5, small, seed 0": True,
            "lr 0.5, small, seed 1": True,
        }


def test_free_return_is_what_decay_alone_does():
    a4 = (1 - 1e-4) ** 4
    for factor in (1.5, 2, 4):
        power, steps = factor**4, 0
        while power - 1 > (factor**4 - 1) / np.e:
            power, steps = power * a4, steps + 1
        assert steps * -np.log(a4) == pytest.approx(equilibria.free_return(factor), abs=1e-3)


class TestTrainings:
    SETUP = Setup(dataset="digits", width=8, depth=2, train_size=256, batch_size=64, label_noise=0.2, drop_last=True)

    def test_without_momentum_there_is_no_correlation(self):
        runs = grid(lr=0.3, weight_decay=0.05, momentum=[0.0, 0.5], seed=0)
        table = equilibria.correlation_of_steps(self.SETUP, runs, 400).set_index("momentum")
        assert table.c[0.0] == 0
        assert table.corrected.to_list() == pytest.approx([1, 1], abs=0.05)
        assert table.apart.to_list() == pytest.approx([1, 1], abs=0.1)

    def test_scaling_changes_norms_only(self):
        runs = [Run(lr=0.3, weight_decay=0.05)]
        norm, gradient = equilibria.after_scaling(self.SETUP, runs, (2, 1), settle=3, follow=2)
        assert norm.shape == gradient.shape == (2, 2, 1)
        assert norm[0, 0, 0] == pytest.approx(2 * norm[0, 1, 0], rel=1e-6)
        assert gradient[0, 0, 0] == pytest.approx(gradient[0, 1, 0], rel=1e-2)  # epsilon
