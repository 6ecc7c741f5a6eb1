"""The benchmark runs and writes what it measured; how fast is no matter for a test."""

import json
from dataclasses import replace

import bench
import pytest
import store_speed
import torch
from bench import CASES, CIFAR, CONVNET, MLP, STEP, Case, Loop
from plain_networks import PLAIN

from periodic_lib.engine import networks

SMALL = replace(CONVNET, width=8, batch_size=8)  # 8 channels: see PlainResNet
TINY = (
    Case("mlp", replace(MLP, width=8), stacks=(1, 2)),
    Case("convnet", SMALL, stacks=(1,), workers=(None,), shape=CIFAR),
    Case("cuda", CONVNET, stacks=(4,), cuda=True),
    Case("resnet", replace(SMALL, network="resnet18"), stacks=(1,), workers=(0,), shape=CIFAR),
)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Two steps a timing, one round, another project folder; returns what reads the file of rows."""
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "SECONDS", 0)
    monkeypatch.setattr(bench, "WORKER_STEPS", 2)
    monkeypatch.setattr(bench, "best_product", lambda device: 1e11)
    path = tmp_path / "data" / "benchmarks" / "training.json"
    return lambda: json.loads(path.read_text())["rows"]


def test_bench_writes_a_row_per_loop(quick):
    table = bench.run(TINY, device="cpu")
    rows = quick()
    measured = [row for row in rows if row["case"] != "cuda"]
    loops = [row["loop"] for row in rows if row["case"] == "mlp"]
    assert loops == ["reference, 0 workers", "reference, 2 workers", "stack of 1", "stack of 2"]
    assert [row["loop"] for row in rows if row["case"] == "convnet"] == ["reference, no loader", "stack of 1"]
    assert all(row["ms_per_run_step"] > 0 for row in measured)
    assert [row["note"] for row in rows if row["case"] == "cuda"] == ["not measured"]
    assert all(row["torch"] for row in measured)
    assert {row["instruction_set"] for row in measured} == {torch.backends.cpu.get_cpu_capability()}
    assert "speedup" in table


def test_rows_of_other_machines_stay(quick, monkeypatch):
    case = Case("mlp", replace(MLP, width=8), stacks=(1,), workers=())
    bench.run((case,), device="cpu")
    monkeypatch.setattr(bench, "processor", lambda: "another")
    bench.run((case,), device="cpu")
    bench.run((case,), device="cpu")
    assert [row["processor"] == "another" for row in quick()] == [False, True]


def test_a_missing_device_is_refused(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda"])
    assert "`--device` must be one of ['cpu'] on this machine; got 'cuda'" in capsys.readouterr().err


def test_one_device_is_measured_when_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "run", lambda cases, device: device)
    bench.main(["--device", "cuda"])
    bench.main([])
    assert capsys.readouterr().out.split() == ["cuda", "cpu", "cuda"]


def test_the_first_call_does_not_choose_the_number_of_steps():
    answers = iter([60.0, 0.01, 0.02])  # a start of a minute, then 10 ms a step
    loop = Loop("", lambda steps: next(answers), runs=4)
    loop.prepare()
    loop.measure()
    assert (loop.steps, loop.seconds()) == (50, 0.005)


def test_workers_are_timed_beyond_what_they_loaded_in_advance():
    loop = Loop("", lambda steps: 1.0, workers=4)
    loop.prepare()
    assert loop.steps == 50


def test_operations_are_counted():
    # three layers: forward, gradient by weights, gradient by inputs (not of the first); and the last layer
    batch, width, layers = 128, 64, 3
    products = layers + layers + (layers - 1)
    expected = 2 * batch * (products * width * width + 2 * width * 10)
    assert bench.operations_of(CASES[0]) == pytest.approx(expected)


def test_operations_of_the_papers_step():
    # 3x3 convolutions on pictures of 32, 32, 16, 8 pixels a side; no gradient by the pictures; the last layer
    sizes = [(3, 32, 32), (32, 64, 32), (64, 128, 16), (128, 256, 8)]  # channels in, out, side
    convolutions = [inputs * outputs * 9 * side**2 for inputs, outputs, side in sizes]
    expected = 2 * 128 * (3 * sum(convolutions) - convolutions[0] + 2 * 256 * 10)
    assert bench.operations_of(STEP) == pytest.approx(expected)
    assert expected == pytest.approx(44e9, rel=0.01)


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_both_loops_train_the_same_network(case):
    plain = PLAIN[case.setup.network](case.shape, case.setup.width)
    ours = networks.build(case.setup, case.shape, 10)
    assert {name: tuple(p.shape) for name, p in plain.names().items()} == {p.name: p.shape for p in ours.parameters}


def test_the_store_is_measured():
    table = store_speed.measured(runs=6, size=2)
    assert set(table.runs) == {6}
    assert (table.seconds >= 0).all()
    assert len(table) == 5
