"""The benchmark runs and writes what it measured; how fast is no matter for a test."""

import json

from periodic_lib import benchmarks, cli


def test_bench_writes_a_row_per_loop(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    monkeypatch.setattr(benchmarks, "ROUNDS", 1)
    monkeypatch.setattr(benchmarks, "STEPS", 2)
    assert cli.main(["bench"]) == 0
    content = json.loads((tmp_path / "data" / "benchmarks" / "digits_mlp.json").read_text())
    assert [row["loop"] for row in content["rows"]][:2] == ["reference loop", "stack of 1"]
    assert content["rows"][0]["speedup"] == 1.0
    assert all(row["ms_per_run_step"] > 0 for row in content["rows"])
    assert content["machine"]["torch"]
    assert "speedup" in capsys.readouterr().out
