"""What the server of the faults has done before it forks: imports, and what every training does anew and alike.

Nothing here starts a thread: a process with threads is not safe to fork.
"""

import importlib
import io
import threading

import pandas as pd
import xarray as xr

from periodic_lib import cli, fingerprints
from periodic_lib.analysis import regimes
from periodic_lib.engine import sources, training
from periodic_lib.publishing import execution

__all__ = ["cli", "execution", "regimes", "training"]

for name in ("sklearn.datasets", "sklearn.model_selection", "tqdm", "pytest", "pandas", "distributed"):
    importlib.import_module(name)
with io.BytesIO(bytes(xr.Dataset({"x": ("run", [0.0])}).to_netcdf(engine="h5netcdf"))) as content:
    xr.open_dataset(content, engine="h5netcdf").load()  # xarray imports its backends, and dask if that is there
xr.DataArray([0.0, 1.0], dims="x").median("x")  # imported at its first use, which another user may not do
pd.DataFrame({"x": [0.0]}).to_string()  # as this
fingerprints.code_digest()  # reads the source of the library
sources.read("digits")
assert threading.active_count() == 1
