"""Every network computes the same gradients whatever the processor: oneDNN's convolutions crashed on some.

torch 2.13 (oneDNN 3.12) corrupts the heap in the backward pass of a 1x1 convolution of stride 2 with fewer than 8
input channels, channels last, on x86-64 without AVX-512: the process dies, or hangs. So each case is a child process
with a time limit. A processor with AVX-512 is narrowed to the other's code by two environment variables.
"""

import os
import subprocess
import sys

import pytest

NARROW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
LIMIT = 120  # seconds of a child, most of them for importing torch on a busy machine
NETWORKS = """
import sys
import torch
from periodic_lib import Setup, grid
from periodic_lib.engine import networks
from periodic_lib.engine.losses import cross_entropy
from periodic_lib.engine.stack import Stack

torch.set_num_threads(int(sys.argv[1]))
cases = [("mlp", 4), ("mlp", 16), ("convnet", 2), ("convnet", 8), ("transformer", 16)]
cases += [("resnet18", width) for width in (1, 2, 3, 4, 5, 6, 7, 8, 12)]
for network, width in cases:
    for runs in (1, 3):
        gradients = []
        for dtype in ("float64", "float32"):
            setup = Setup(network=network, width=width, batch_size=16, dtype=dtype, train_size=64)
            stack = Stack(setup, grid(lr=0.1, weight_decay=0, seed=range(runs)))
            examples = stack._examples(stack.batch_order().next())
            gradients.append(stack._loss_and_gradient(*examples)[1].double())
        exact, single = gradients
        error = float((single - exact).norm() / exact.norm())
        print(network, width, runs, f"{error:.1e}", flush=True)
        assert error < 1e-2, error  # rounding, amplified by 20 normalizations of 16 pictures

labels = torch.arange(16)[None] % 10
for width in (2, 3, 4, 5, 6, 7, 8):  # pictures of 3 channels: of one, a run alone is not channels last
    resnet = networks.build(Setup(network="resnet18", width=width), (3, 8, 8), classes=10)
    x = torch.randn(1, 16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for dtype in (torch.float64, torch.float32):
        values = {name: value[None].to(dtype).requires_grad_() for name, value in resnet.initialize(0).items()}
        loss = cross_entropy(resnet.logits(values, x.to(dtype)), labels).sum()
        parts = torch.autograd.grad(loss, list(values.values()))
        gradients.append(torch.cat([part.double().flatten() for part in parts]))
    exact, single = gradients
    error = float((single - exact).norm() / exact.norm())
    print("colour", width, f"{error:.1e}", flush=True)
    assert error < 1e-2, error
print("done")
"""
SHORTCUT = """
import sys
import torch
from periodic_lib.engine.networks import ResNet18

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
for channels in (1, 2, 3, 4, 5, 6, 7, 8, 12):
    for runs in (1, 2):
        h = torch.randn(16, runs * channels, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(runs, 2 * channels, channels, 1, 1, requires_grad=True)
        exact = [value.detach().double().contiguous().requires_grad_() for value in (h, weight)]
        out = ResNet18._convolve({"c.weight": weight}, "c", h, stride=2)
        plain = torch.nn.functional.conv2d(exact[0], exact[1].flatten(0, 1), stride=2, groups=runs)
        torch.testing.assert_close(out.double(), plain, rtol=1e-4, atol=1e-4)
        push = torch.randn_like(out)
        found = torch.autograd.grad(out, (h, weight), push)
        expected = torch.autograd.grad(plain, exact, push.double())
        for mine, theirs in zip(found, expected):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-3)
print("done")
"""


@pytest.mark.parametrize("program", [NETWORKS, SHORTCUT], ids=["networks", "shortcut"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("instructions", [{}, NARROW], ids=["all", "avx2"])
def test_gradients_are_right_and_the_process_lives(instructions, threads, program):
    environment = {**os.environ, **instructions, "OMP_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # on a busy machine, threads that spin take a minute
    command = [sys.executable, "-c", program, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    assert done.stdout.endswith("done\n")
