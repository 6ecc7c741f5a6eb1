"""Which convolutions this processor and this PyTorch compute wrongly, or die of.

`python tests/faults/convolution_shapes.py` draws small shapes, convolves forward and backward in
float32 in a process of its own, compares with float64, and writes what failed, by class, to
data/benchmarks/convolution_shapes.json.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

NARROW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # a processor of AVX2 alone
ISAS = {"own": {}, "AVX2": NARROW}
TOLERANCE = 1e-4  # largest difference over largest value, in float32
SECONDS = 20  # of a convolution that takes milliseconds
REPEATS = 2  # a heap broken by one pass is found out by the next
TARGET = Path(__file__).parents[2] / "data" / "benchmarks" / "convolution_shapes.json"


# ---------------------------------------------------------------- a process per job


def serve(job: Callable[..., dict[str, float]], harmless: dict) -> None:
    """Run `job` once per line of JSON (its arguments) on standard input, each in a forked process.

    Prints a line of JSON each: `end` is "ok", "hung" or the signal the process died of, `errors`
    what the job returned. `harmless`: arguments run first, so that no fork has to load PyTorch.
    """
    job(**harmless)
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)  # kills a process that hangs
            os.write(write, json.dumps(job(**json.loads(line))).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as stream:
            said = stream.read()
        end = _end(os.waitpid(child, 0)[1])
        print(json.dumps({"end": end, "errors": json.loads(said or "{}")}))


def _end(status: int) -> str:
    """Return how a process ended, from what `os.waitpid` says.

    >>> _end(0), _end(signal.SIGALRM), _end(signal.SIGSEGV), _end(256)
    ('ok', 'hung', 'SIGSEGV', 'exit 1')
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hung" if number == signal.SIGALRM else signal.Signals(number).name
    return f"exit {code}" if (code := os.WEXITSTATUS(status)) else "ok"


def ask(program: str, jobs: Iterable[dict], isa: str) -> list[dict]:
    """Return what `serve`, run by `program`, says to each job under a set of instructions."""
    lines = "\n".join(json.dumps(job) for job in jobs)
    command = [sys.executable, program, "serve"]
    environment = {**os.environ, **_strict_heap(), **ISAS[isa], "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, input=lines, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _strict_heap() -> dict[str, str]:
    """Return the environment in which the C library checks the ends of every block it frees."""
    library = ctypes.util.find_library("c_malloc_debug")
    return {"LD_PRELOAD": library, "MALLOC_CHECK_": "3"} if library else {}


# ---------------------------------------------------------------- a convolution


@dataclass(frozen=True)
class Convolution:
    """A convolution of `groups` groups, each from `inputs` to `outputs` channels."""

    groups: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    batch: int
    size: int
    layout: str = "channels_last"
    threads: int = 1


HARMLESS = asdict(Convolution(1, 8, 8, kernel=1, stride=1, batch=1, size=4, layout="contiguous"))


def draw(generator: random.Random) -> Convolution:
    """Draw a shape: half of them of one group, half of them of 8 or fewer channels a group."""
    few, depthwise = generator.random() < 0.5, generator.random() < 0.1
    channels = [generator.randint(1, 8 if few else 20) for _ in range(2)]
    return Convolution(
        groups=generator.choice((1, 1, 1, 2, 3, 4)) if not depthwise else generator.randint(2, 20),
        inputs=1 if depthwise else channels[0],
        outputs=1 if depthwise else channels[1],
        kernel=generator.choice((1, 3)),
        stride=generator.choice((1, 2)),
        batch=generator.choice((1, 2, 3, 8, 12, 32)),
        size=generator.randint(4, 16),
    )


def errors(convolve: Callable | None = None, **shape: object) -> dict[str, float]:
    """Return the relative errors of output and gradients in float32, the largest of `REPEATS`.

    `convolve(h, weight, stride, groups)`: what is tested, PyTorch's own without it.
    """
    import torch

    case = Convolution(**shape)
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    plain = torch.nn.functional.conv2d
    worst = Counter()
    for _ in range(REPEATS):
        drawn = _arguments(case)
        truth = _pass(case, *drawn, _padded(plain), "contiguous", torch.float64)
        found = _pass(case, *drawn, convolve or _padded(plain), case.layout, torch.float32)
        for name, value in truth.items():
            worst[name] = max(worst[name], _difference(found[name], value))
    return dict(worst)


def _padded(conv2d: Callable) -> Callable:
    """Return `conv2d` with the zeros around the picture that keep its size at stride 1."""

    def convolve(h, weight, stride, groups):
        return conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    return convolve


def _arguments(case: Convolution) -> tuple:
    """Draw picture, weight and the gradient with respect to the output."""
    import torch

    small = (case.size - 1) // case.stride + 1
    outputs = case.groups * case.outputs
    return (
        torch.randn(case.batch, case.groups * case.inputs, case.size, case.size),
        torch.randn(outputs, case.inputs, case.kernel, case.kernel),
        torch.randn(case.batch, outputs, small, small),
    )


def _pass(case, picture, weight, gradient, convolve: Callable, layout: str, dtype) -> dict:
    """Return output, input gradient and weight gradient."""
    import torch

    form = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[layout]
    picture, weight, gradient = (
        value.to(dtype).contiguous(memory_format=form) for value in (picture, weight, gradient)
    )
    leaves = picture.requires_grad_(), weight.requires_grad_()
    output = convolve(*leaves, case.stride, case.groups)
    of_input, of_weight = torch.autograd.grad(output, leaves, gradient)
    return {"output": output.detach(), "input gradient": of_input, "weight gradient": of_weight}


def _difference(found, truth) -> float:
    """Return the largest difference over the largest value; infinite if something is not finite."""
    difference = float((found.double() - truth).abs().max() / truth.abs().max())
    return difference if difference < float("inf") else float("inf")


# ---------------------------------------------------------------- the search


def variants(shape: Convolution) -> list[Convolution]:
    """Return a shape in both layouts, with one thread and two."""
    layouts = ("channels_last", "contiguous")
    return [replace(shape, layout=form, threads=n) for form in layouts for n in (1, 2)]


def verdict(answer: dict) -> str:
    """Return "ok", "wrong", "hung" or "crashed".

    >>> verdict({"end": "ok", "errors": {"output": 1e-7}}), verdict({"end": "SIGSEGV"})
    ('ok', 'crashed')
    """
    if answer["end"] != "ok":
        return "hung" if answer["end"] == "hung" else "crashed"
    return "ok" if max(answer["errors"].values()) < TOLERANCE else "wrong"


def counts(rows: list[dict]) -> dict[str, dict[str, int]]:
    """Return how many rows were tried, crashed, hung and came out wrong, class by class."""
    table: dict[str, Counter] = {}
    for row in rows:
        few = "under 8" if row["inputs"] < 8 else "8 or more"
        classes = {**row, "inputs": few, "groups": "one" if row["groups"] == 1 else "several"}
        for name in ("groups", "inputs", "kernel", "stride", "layout", "threads", "isa"):
            empty = Counter(tried=0, crashed=0, hung=0, wrong=0)
            count = table.setdefault(f"{name} {classes[name]}", empty)
            count["tried"] += 1
            if row["verdict"] != "ok":
                count[row["verdict"]] += 1
    return {name: dict(table[name]) for name in sorted(table)}


def search(shapes: int, seed: int) -> dict:
    """Return the summary of `shapes` random shapes, in all variants and instruction sets."""
    import torch

    generator, start = random.Random(seed), time.perf_counter()
    cases = [asdict(case) for _ in range(shapes) for case in variants(draw(generator))]
    rows = []
    for isa in ISAS:
        answers = ask(__file__, cases, isa)
        rows += [
            {**case, "isa": isa, "verdict": verdict(answer), "end": answer["end"]}
            for case, answer in zip(cases, answers, strict=True)
        ]
    total = Counter(row["verdict"] for row in rows)
    return {
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "seed": seed,
        "shapes": shapes,
        "seconds": round(time.perf_counter() - start),
        "tried": len(rows),
        **{name: total[name] for name in ("crashed", "hung", "wrong")},
        "classes": counts(rows),
        "failing": [row for row in rows if row["verdict"] != "ok"],
    }


def main(shapes: int = 300, seed: int = 0) -> None:
    """Search, print the table, write the summary."""
    summary = search(shapes, seed)
    heading = ("tried", "crashed", "hung", "wrong")
    print(f"{'':24}" + "".join(f"{name:>9}" for name in heading))
    for name, count in {"all": summary, **summary["classes"]}.items():
        print(f"{name:24}" + "".join(f"{count[column]:9}" for column in heading))
    failing = ",\n".join(f"  {json.dumps(row)}" for row in summary.pop("failing"))
    text = json.dumps(summary, indent=1).removesuffix("\n}")
    TARGET.write_text(f'{text},\n "failing": [\n{failing}\n ]\n}}\n')


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve(errors, HARMLESS)
    else:
        main(*map(int, sys.argv[1:]))
