"""Turns of neurons against the equilibrium's, on synthetic records with known answers."""

import json

import numpy as np
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis.rotation import expected_turn, neuron_turns, turns_by_kind

STEPS = 40


def record(optimizer="sgd", momentum=0.0):
    """Two neurons: one turns as it should from the middle on, the other alternates 0 and twice that."""
    lr, wd = 0.1, 1e-2
    at_rest = float(theory.equilibrium_angle(lr, wd, momentum))
    if optimizer != "sgd":
        at_rest = float(theory.equilibrium_angle_adamw(lr, wd, 0.9))
    steady = np.where(np.arange(STEPS) < STEPS // 2, 9.0, at_rest)
    uneven = np.where(np.arange(STEPS) % 2, 2 * at_rest, 0.0)
    angles = np.stack([steady, uneven], axis=-1)[None]
    norms = np.stack([np.ones(STEPS), np.exp(-0.01 * np.arange(STEPS))], axis=-1)[None]
    dims = ("run", "step", "neuron")
    places = {"run": [3], "step": np.arange(STEPS), "neuron": ["hidden0.weight[0]", "block.values[7]"]}
    places |= {name: ("run", [v]) for name, v in (("lr", lr), ("weight_decay", wd), ("momentum", momentum))}
    places["beta1"] = ("run", [0.9])
    data = {"neuron_angular_update": (dims, angles), "neuron_weight_norm": (dims, norms)}
    return xr.Dataset(data, places, {"setup": json.dumps({"optimizer": optimizer})})


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0), ("adam", 0.0)])
def test_turns_are_measured_in_units_of_the_equilibriums(optimizer, momentum):
    table = neuron_turns(record(optimizer, momentum)).set_index("neuron")
    assert table.ratio["hidden0.weight[0]"] == pytest.approx(1)
    assert table.ratio["block.values[7]"] == pytest.approx(np.sqrt(2))  # root of the mean square
    assert table.typical["hidden0.weight[0]"] == pytest.approx(1)
    assert table.typical["block.values[7]"] == pytest.approx(
        np.sqrt(0.5)
    )  # of 0 and 2: 1, over their root mean square
    assert table.layer.tolist() == ["hidden0.weight", "block.values"]
    assert table.run.tolist() == [3, 3]
    assert table.held["hidden0.weight[0]"] == pytest.approx(0)
    assert table.held["block.values[7]"] == pytest.approx(-0.02 * STEPS / 4)


def test_the_expected_turn_knows_the_optimizer():
    sgd, adamw = (expected_turn(record(name)).item() for name in ("sgd", "adamw"))
    assert sgd == pytest.approx(np.sqrt(2e-3), rel=1e-3)
    assert adamw == pytest.approx(np.sqrt(2e-3 * 0.1 / 1.9), rel=1e-2)


def test_turns_of_variants_stand_in_one_table():
    table = turns_by_kind({("qk_norm", True): record(), ("qk_norm", False): record("adamw")})
    assert len(table) == 4
    assert table.groupby("qk_norm").size().to_dict() == {False: 2, True: 2}
    assert table.kind.tolist() == ["weight", "values"] * 2
    assert table.ratio.to_numpy() == pytest.approx(np.array([1, np.sqrt(2)] * 2))
