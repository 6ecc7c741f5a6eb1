"""What the scripts in this folder say of the origin of a table that they write."""

from __future__ import annotations

import datetime

import pandas as pd
import torch


def dated(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with columns `torch`, its version, and `date`, today's."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return table.assign(torch=torch.__version__, date=today)


def of_processor(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of times as `dated`, with the processor's `instructions` as torch uses them."""
    return dated(table.assign(instructions=torch.backends.cpu.get_cpu_capability()))
