"""What a device needs: CUDA's arithmetic and graphs, the memory of a CPU."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def cuda_flags(tf32: bool):
    """Allow, or forbid, CUDA to round to tf32, and have it take algorithms that repeat bit for bit;
    inside only.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    wanted = [
        (matmul, "allow_tf32", tf32),
        (cudnn, "allow_tf32", tf32),
        (cudnn, "deterministic", True),
        (cudnn, "benchmark", False),  # may choose another algorithm at the next start
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@cache
def keep_freed_memory() -> None:
    """Ask glibc not to give freed memory back to the system between steps: getting it again costs a
    third of a step.

    A step of a convolutional network frees and allocates hundreds of megabytes; by default the
    system takes them back and hands them out again page by page, zeroed. Where there is no glibc,
    nothing is done.
    """
    trim_threshold, mmap_max = -1, -4  # numbers of glibc's <malloc.h>
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)  # large tensors come from the heap, too
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError, TypeError):
        return


class Graph:
    """One step as a CUDA graph: fixed input tensors, one launch a step.

    Capturing leaves the state as it was.
    """

    WARM_UP = 3

    def __init__(self, stack: object, *inputs: torch.Tensor):
        self.inputs = [value.clone() for value in inputs]
        before = {name: value.clone() for name, value in stack.state().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                stack._update(*self.inputs, ())
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):  # the stream that was warmed up
            (self.measured,) = stack._update(*self.inputs, ())
        stack.load_state(before)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Do the step on other inputs of the same shapes; return what was measured."""
        for mine, value in zip(self.inputs, inputs, strict=True):
            mine.copy_(value)
        self.graph.replay()
        return self.measured
