"""The benchmark runs and writes what it measured; how fast is no matter for a test."""

import json
from dataclasses import replace

import pytest

from periodic_lib import benchmarks
from periodic_lib.benchmarks import CASES, CONVNET, MLP, Case

TINY = (
    Case("mlp", replace(MLP, width=8), stacks=(1, 2)),
    Case("convnet", replace(CONVNET, width=4, batch_size=8), stacks=(1,), shape=(3, 32, 32)),
    Case("cuda", CONVNET, stacks=(4,), cuda=True),
    Case("resnet", replace(CONVNET, network="resnet18", width=4, batch_size=8), stacks=(1,), shape=(3, 32, 32)),
)


def test_bench_writes_a_row_per_loop(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    monkeypatch.setattr(benchmarks, "ROUNDS", 1)
    monkeypatch.setattr(benchmarks, "SECONDS", 0.01)
    table = benchmarks.run(TINY, device="cpu")
    content = json.loads((tmp_path / "data" / "benchmarks" / "training.json").read_text())
    loops = [row["loop"] for row in content["rows"] if row["case"] == "mlp"]
    assert loops == ["reference, 0 workers", "reference, 2 workers", "stack of 1", "stack of 2"]
    assert all(row["ms_per_run_step"] > 0 for row in content["rows"] if row["case"] != "cuda")
    assert [row["note"] for row in content["rows"] if row["case"] == "cuda"] == ["not measured"]
    assert content["machine"]["torch"]
    assert "speedup" in table


def test_operations_are_counted():
    # three layers: forward, gradient by weights, gradient by inputs (not of the first); and the last layer
    batch, width, layers = 128, 64, 3
    products = layers + layers + (layers - 1)
    expected = 2 * batch * (products * width * width + 2 * width * 10)
    assert benchmarks._flops(CASES[0]) == pytest.approx(expected)


def test_both_loops_train_the_same_network():
    for case in TINY:
        plain = benchmarks.PLAIN[case.setup.network](case.shape, case.setup.width)
        ours = benchmarks.networks.build(case.setup, case.shape, 10)
        sizes = sorted(p.numel() for p in plain.parameters())
        assert sizes == sorted(int(p.draw(benchmarks.torch.Generator()).numel()) for p in ours.parameters)
