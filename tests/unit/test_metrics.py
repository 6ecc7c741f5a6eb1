import math

import pytest
import torch

from periodic_lib.engine import metrics


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.5, 2.0])
def test_angle_is_exact_in_float32_for_small_and_large_angles(angle):
    old = torch.zeros(1, 500)
    old[0, 0] = 7.0
    new = torch.zeros(1, 500)
    new[0, 0], new[0, 1] = 6.9 * math.cos(angle), 6.9 * math.sin(angle)
    assert float(metrics.angle(old, new)) == pytest.approx(angle, rel=1e-6)


def test_angle_agrees_with_the_cosine_for_random_vectors():
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(4, 40, dtype=torch.float64, generator=generator) for _ in range(2))
    theirs = torch.arccos(torch.nn.functional.cosine_similarity(old, new, dim=1))
    assert torch.allclose(metrics.angle(old, new), theirs, rtol=1e-10)


def test_norm_is_per_run():
    assert metrics.norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist() == [5.0, 2.0]
