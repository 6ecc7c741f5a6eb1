"""Every test has its own place for results and records, so that none touches the project's."""

import matplotlib
import pytest

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERIODIC_RECORDS", str(tmp_path / "records"))
    monkeypatch.delenv("PERIODIC_PROGRESS", raising=False)
    monkeypatch.delenv("PERIODIC_ROOT", raising=False)
    monkeypatch.delenv("PERIODIC_SEED_SHIFT", raising=False)
    monkeypatch.setenv("PERIODIC_OFFLINE", "1")
