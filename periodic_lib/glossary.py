"""The words of this project, defined once: for docstrings, axis labels, result files and the book's
glossary page.

Code uses the field's standard terms; the key of an entry is the name in code. Symbols stand in
equations only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word: the `term` itself, its LaTeX `symbol` if it has one, its `definition`, its `unit` if
    it is measured.
    """

    term: str
    definition: str
    symbol: str = ""
    unit: str = ""


MISSING = "–"  # how a table shows a value that is not there

TERMS = {
    "scale_invariant": Term(
        "scale-invariant weights",
        "weights whose common scaling by c > 0 leaves the loss as it is: all that feed a batch normalization",
        "w",
    ),
    "lr": Term("learning rate", "the factor of the gradient in a step", r"\eta", "1"),
    "weight_decay": Term(
        "weight decay",
        "the factor lambda of the coupled decay, w <- w - lr (gradient + lambda w); a = 1 - lr lambda",
        r"\lambda",
        "1",
    ),
    "lr_wd": Term(
        "learning rate × weight decay",
        "their product, which sets the time scale: decay halves the norm in ln 2 / (lr wd) steps",
        r"\eta\lambda", "1",
    ),
    "weight_norm": Term("weight norm", "the norm of all scale-invariant weights together", r"\rho", "1"),
    "elr": Term(
        "effective learning rate",
        "learning rate over squared weight norm: the step that the direction of the weights feels",
        r"\eta/\rho^2", "1",
    ),
    "grad_norm": Term(
        "gradient norm", "the norm of the gradient by the scale-invariant weights, without the decay term",
        r"|\nabla L|", "1",
    ),
    "eff_grad_norm": Term(
        "effective gradient norm", "gradient norm times weight norm: the gradient norm on the unit sphere",
        r"\tilde g", "1",
    ),
    "angular_update": Term(
        "angular update", "the angle between the scale-invariant weights before and after a step", r"\alpha", "radians"
    ),
    "window_budget": Term(
        "window budget",
        "the share of what weight decay takes from the squared norm that growth gives back, within a window in which "
        "weight decay takes a tenth: near 1 if the norm holds (equilibrium), near 0 while it decays freely",
        "b", "1",
    ),
    "batch_sharpness": Term(
        "batch sharpness",
        "the curvature of the loss of a step's own mini-batch along its gradient, at unit norm: a step passes the edge of "
        "stability of that batch where half of effective learning rate times batch sharpness exceeds 1", "h_B", "1",
    ),
    "radial_cosine": Term(
        "radial cosine",
        "the cosine between the gradient and the scale-invariant weights: 0 where the invariance is exact, so that "
        "it shows where a normalization's epsilon breaks it",
        r"\cos(g, w)", "1",
    ),
    "train_loss": Term(
        "training loss", "the mean cross-entropy of a step's mini-batch before the step, "
        "normalization in training mode",
        "L", "nats",
    ),
    "train_loss_full": Term(
        "training loss (full set)", "the same over the training set, in mini-batches, in training mode", "", "nats"
    ),
    "train_error": Term(
        "training error", "the fraction of the training set told wrongly, normalization in training mode", "", "1"
    ),
    "test_loss": Term(
        "test loss",
        "the mean cross-entropy of the test set, with batch-normalization statistics re-estimated on the training set",
        "", "nats",
    ),
    "test_error": Term("test error", "the fraction of the test set told wrongly, evaluated as the test loss", "", "1"),
    "sharpness": Term(
        "spherical sharpness", "the largest eigenvalue of the loss's Hessian on the unit sphere", "h", "nats"
    ),
    "edge": Term(
        "stability edge",
        "two over the sharpness: the step on the sphere above which gradient descent leaves a minimum",
        "2/h",
    ),
    "equilibrium_norm": Term(
        "equilibrium norm", "the weight norm at which decay and growth of a step balance", r"\rho_*"
    ),
    "equilibrium_angle": Term(
        "equilibrium angle", "the angular update at the equilibrium norm: arccos(1 - lr weight_decay), whatever the "
        "gradient", r"\arccos a",
    ),
    "balance_ratio": Term(
        "balance ratio", "the tangent of the angular update over that of the equilibrium angle; its mean "
        "square is 1 whenever the norm returns to where it was",
    ),
    "jump": Term(
        "delta-jump", "a step whose cosine distance between successive weights exceeds delta", r"\delta"
    ),
    "destabilization": Term(
        "destabilization, break", "the weight norm, which decay had been shrinking, is pushed out: the squared norm rises "
        "by a tenth and more after such a fall",
    ),
    "excursion": Term(
        "excursion", "the loss leaves its recent level, whatever the norm does; for runs whose norm cannot move"
    ),
    "period": Term("period", "from one destabilization to the next"),
    "phase_a": Term("phase A", "the loss and the effective gradient fall, the norm decays", "A"),
    "phase_b": Term(
        "phase B", "the effective learning rate has become so large that the gradient stops falling and rises", "B"
    ),
    "phase_c": Term("phase C", "the destabilization: the loss shoots up and the norm grows", "C"),
    "convergence": Term("convergence", "a regime: no destabilization so far, the norm shrinks"),
    "periodic": Term(
        "periodic", "a regime: training destabilizes and starts anew, at least three times, at spacings whose coefficient "
        "of variation is below 0.7; else it is called one break, two breaks or irregular breaks",
    ),
    "equilibrium": Term(
        "equilibrium", "a regime: the weight norm holds over a fraction of its memory, that is, its window budget is at "
        "least 0.53",
    ),
    "undecided": Term(
        "undecided", "of a run's regime: its margin is below 0.1, so that a criterion lies within a tenth of its border"
    ),
    "passage": Term("passage", "the stretch between two breaks, or from the start to the first", ),
    "restart_level": Term("restart level", "the effective learning rate at which a period begins, after a break", "", "1"),
    "break_level": Term("break level", "the effective learning rate at which a break begins", "", "1"),
    "span": Term(
        "span", "the ratio of break level to restart level within a period; its logarithm over 2 lr wd is the time that free "
        "decay takes", "", "1",
    ),
    "overshoot": Term("overshoot", "how far a break throws the effective learning rate below the level it would settle at"),
    "freezing_level": Term(
        "freezing level", "the fixed effective learning rate up to which a broken or random network converges", "", "1"
    ),
    "melting_level": Term(
        "melting level", "the fixed effective learning rate from which on a converged network breaks", "", "1"
    ),
    "gradient_floor": Term(
        "gradient floor", "the smallest effective gradient norm that the data allow, however long one trains; zero if all "
        "labels can be learned"
    ),
    "edge_share": Term(
        "batch edge share", "effective learning rate times batch sharpness over 2: above 1 a step overshoots along its own "
        "gradient on its own mini-batch", r"\kappa", "1",
    ),
    "affine_pair": Term(
        "scale-shift pair", "scale and shift of a normalization whose output meets another normalization: scale-invariant "
        "together"
    ),
    "auc": Term(
        "area under the curve", "the probability that a score ranks a random positive case above a random negative one; "
        "1/2 by chance", "AUC", "1",
    ),
    "hazard": Term("hazard", "the probability that an event begins in a given number of next steps"),
    "variation": Term(
        "coefficient of variation", "standard deviation over mean, here of the spacings of breaks: 0 for a clock, about 1 for "
        "events at random times", "", "1",
    ),
    "divergence": Term("divergence", "a regime: the loss is not finite, or no better than guessing"),
    "fixed_norm": Term("fixed norm", "training with the weight norm projected back to one value after every step"),
    "step": Term("step", "one update of the parameters, on one mini-batch", "t"),
    "epoch": Term("epoch", "as many steps as one pass over the training set takes"),
    "run": Term("run", "one training from one initialization, with one set of hyper-parameters"),
    "direction": Term("direction", "the scale-invariant weights over their norm", "u", "1"),
    "test_logits": Term("logits of the test examples", "the network's last numbers before the loss", "", "1"),
    "diverged_at": Term("end of the numbers", "the step at which a run left the finite numbers", "", "steps"),
    "setup": Term("setup", "what all runs of a stack share: data, network, batch size, optimizer"),
}  # fmt: skip


MEASURED = {name: term for name, term in TERMS.items() if term.unit}
LABELS = {name: (term.term, term.unit) for name, term in MEASURED.items()} | {
    f"{part}_{name}": (f"{term.term} of a {part}", term.unit)
    for part in ("layer", "neuron")
    for name, term in MEASURED.items()
}  # variable of a result -> (what it is, unit)


def label(name: str) -> str:
    """Return what stands on an axis or at the head of a column for a name in code: words, and the
    unit if any.

    >>> label("angular_update"), label("lr_wd"), label("some_count")
    ('angular update [radians]', 'learning rate × weight decay', 'some count')
    """
    words, unit = LABELS.get(name, (name.replace("_", " "), ""))
    return words if unit in ("", "1") else f"{words} [{unit}]"


def page() -> str:
    """Return the book's glossary page (MyST): words, names in code, symbols."""
    rows = ["* - Word\n  - In code\n  - Symbol\n  - Definition"]
    for name, term in TERMS.items():
        symbol = f"${term.symbol}$" if term.symbol else ""
        unit = f" Unit: {term.unit}." if term.unit not in ("", "1") else ""
        meaning = f"{term.definition[0].upper()}{term.definition[1:]}.{unit}"
        rows.append(f"* - {term.term}\n  - `{name}`\n  - {symbol}\n  - {meaning}")
    return PAGE.format(rows="\n".join(rows))


PAGE = """# Glossary

The words of this book, with their names in code and their symbols in equations. Docstrings, axis labels and result
files take them from the same place, `periodic_lib.glossary`.

```{{list-table}}
:header-rows: 1
:widths: 18 18 10 54
{rows}
```
"""
