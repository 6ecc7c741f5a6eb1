import numpy as np
import pytest

from periodic_lib.analysis.random_gradients import RandomGradients, compared
from periodic_lib.project import ConfigError


def test_without_noise_a_step_is_decay_alone():
    w, still = np.ones((2, 3)), np.zeros((2, 3))
    for optimizer in ("SGD", "AdamW"):
        case = RandomGradients(optimizer, 0.0, lr=0.5, weight_decay=0.2, size=3)
        new, _ = case.step(w, still, still)
        np.testing.assert_allclose(new, 0.9 * w)


@pytest.mark.parametrize(("optimizer", "momentum"), [("SGD", 0.9), ("AdamW", 0.9), ("SGD", 0.0)])
def test_steps_are_those_of_torch(optimizer, momentum):
    torch = pytest.importorskip("torch")
    case, rng = RandomGradients(optimizer, momentum, size=5), np.random.default_rng(0)
    w, memory = rng.normal(size=(1, 5)), np.zeros((1, 5))
    theirs = torch.tensor(w.copy(), requires_grad=True)
    torch_optimizer = torch.optim.SGD([theirs], case.lr, momentum, weight_decay=case.weight_decay)
    bias = 1.0
    for _ in range(4):
        noise = rng.normal(size=(1, 5))
        if optimizer == "SGD":
            theirs.grad = torch.tensor(noise * case.eff_grad_norm / np.sqrt(5) / np.linalg.norm(w))
            torch_optimizer.step()
            w, memory = case.step(w, memory, noise)
            np.testing.assert_allclose(theirs.detach().numpy(), w, rtol=1e-12)
        else:  # the first moment by its definition, an exponential mean of the gradients
            bias *= momentum
            w, memory = case.step(w, memory, np.ones((1, 5)))
            np.testing.assert_allclose(memory, 1 - bias)


def test_norm_and_turn_come_to_rest_at_the_laws():
    cases = [RandomGradients(name, mu, lr=0.2) for name in ("SGD", "AdamW") for mu in (0.0, 0.9)]
    found = compared(cases, memories=30)
    assert found.within.all(), found
    assert (found.ratio - 1).abs().max() < 0.04, found
    wrong = compared([RandomGradients("SGD", eff_grad_norm=3.3)], memories=4).ratio  # its own law: within
    assert wrong.iloc[0] == pytest.approx(1, abs=0.02)


def test_another_optimizer_is_refused():
    with pytest.raises(ConfigError, match="`optimizer` must be one of"):
        RandomGradients("Lion")
