"""The words of this project, defined once: for docstrings, axis labels, result files and the book's glossary page.

Code uses the field's standard terms; the key of an entry is the name in code. Symbols stand in equations only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word: the `term` itself, its LaTeX `symbol` if it has one, its `definition`, its `unit` if it is measured."""

    term: str
    definition: str
    symbol: str = ""
    unit: str = ""


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
    "train_loss": Term(
        "training loss", "the mean cross-entropy of a step's mini-batch before the step, "
        "normalization in training mode",
        "L", "nats",
    ),
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
        "destabilization", "the weight norm, which decay had been shrinking, is kicked out while the training loss "
        "leaves its low level",
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
    "convergence": Term("convergence", "a regime: no destabilization so far, the loss falls, the norm shrinks"),
    "periodic": Term("periodic", "a regime: training destabilizes and starts anew, again and again"),
    "equilibrium": Term(
        "equilibrium", "a regime: the typical step turns the weights about as far as the balance of decay and growth "
        "demands; norm and loss fluctuate around a level",
    ),
    "divergence": Term("divergence", "a regime: the loss is not finite, or no better than guessing"),
    "fixed_norm": Term("fixed norm", "training with the weight norm projected back to one value after every step"),
    "step": Term("step", "one update of the parameters, on one mini-batch", "t"),
    "epoch": Term("epoch", "as many steps as one pass over the training set takes"),
    "run": Term("run", "one training from one initialization, with one set of hyper-parameters"),
    "setup": Term("setup", "what all runs of a stack share: data, network, batch size, optimizer"),
}  # fmt: skip


def define(text: str) -> str:
    """Return `text` with every [[name]] replaced by that term's definition.

    >>> define("`elr`: [[elr]].")
    '`elr`: learning rate over squared weight norm: the step that the direction of the weights feels.'
    """
    return re.sub(r"\[\[(\w+)\]\]", lambda match: TERMS[match[1]].definition, text)


def defined(function: Callable) -> Callable:
    """Fill in the definitions in the docstring of a function (decorator)."""
    function.__doc__ = define(function.__doc__ or "")
    return function


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
