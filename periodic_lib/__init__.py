"""Stacked training of scale-invariant networks, its theory, and the periods it shows.

    from periodic_lib import Setup, grid, train, find_periods
    results = train(Setup(steps=2000), grid(lr=[0.3, 1.0], weight_decay=1e-2, seed=[0, 1]))
    find_periods(results)

Importing has no effect and is quick: PyTorch is loaded at the first use of a name that needs it.
"""

from periodic_lib.config import Record, Run, Setup, grid
from periodic_lib.project import ConfigError, lazily

__version__ = "0.1.0"

_LAZY = {  # public name -> module that defines it
    "train": "engine.training",
    "run_experiment": "experiments",
    "find_periods": "analysis.periods",
    "find_destabilizations": "analysis.periods",
    "find_minima": "analysis.minima",
    "label_phases": "analysis.periods",
    "classify_regime": "analysis.regimes",
    "summarize": "analysis.regimes",
    "window_budget": "analysis.regimes",
    "Chapter": "publishing.chapters",
    "late": "analysis.periods",
    "count_by_run": "analysis.periods",
    "spread": "analysis.spreads",
    "interval": "analysis.spreads",
    "use_style": "figures.plots",
}
__all__ = ["ConfigError", "Record", "Run", "Setup", "grid", *_LAZY]


__getattr__ = lazily(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
