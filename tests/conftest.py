"""Every test has its own place for results and records, so that none touches the project's."""

import os
import tempfile
import textwrap

import matplotlib
import pytest

matplotlib.use("agg")
if instructions := os.environ.get("ATEN_CPU_CAPABILITY"):  # torch.compile keeps code for others under the same name
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/inductor-{os.getuid()}-{instructions}")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERIODIC_RECORDS", str(tmp_path / "records"))
    monkeypatch.delenv("PERIODIC_PROGRESS", raising=False)
    monkeypatch.delenv("PERIODIC_ROOT", raising=False)
    monkeypatch.delenv("PERIODIC_SEED_SHIFT", raising=False)
    monkeypatch.setenv("PERIODIC_OFFLINE", "1")


@pytest.fixture
def project_of(tmp_path, monkeypatch):
    """Return a function that makes the test's folder a project with these experiments, and returns it."""

    def make(experiments):
        (tmp_path / "book").mkdir()
        (tmp_path / "book" / "experiments.yml").write_text(textwrap.dedent(experiments))
        monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
        return tmp_path

    return make


@pytest.fixture
def closed_figures():
    """Close what a test has drawn."""
    from matplotlib import pyplot

    yield
    pyplot.close("all")
