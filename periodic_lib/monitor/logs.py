"""Scalars of a monitor on disk: a CSV file, TensorBoard, or both."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


class Logs:
    """Where rows of scalars go.

    Parameters
    ----------
    path : a CSV file, which is continued if it is there; or None.
    board : a folder, or an object with `add_scalar(name, value, step)`; or None. For a folder
        `torch.utils.tensorboard` is imported here.
    """

    def __init__(self, path: Path | str | None, board: object):
        self.path = None if path is None else Path(path)
        self.last = 0  # step of the last row
        if board is not None and not hasattr(board, "add_scalar"):
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(board))
        self.board = board

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one row."""
        self.last = step
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(f"periodic/{name}", value, step)
        if self.path is not None:
            fresh = not self.path.exists()
            with self.path.open("a", newline="") as file:
                header = [["step", *row]] * fresh
                csv.writer(file).writerows([*header, [step, *row.values()]])
