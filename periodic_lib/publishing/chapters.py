"""What a chapter says with numbers: checked claims, published numbers, tables, described figures.

A `Chapter` writes them to one JSON file as it goes; the book's scorecard, the `{result}` role and
the figures on other pages read that file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

from periodic_lib import glossary
from periodic_lib.checks import known_names
from periodic_lib.project import ConfigError, write_whole
from periodic_lib.publishing import claims
from periodic_lib.publishing.claims import Checked

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

SHORTEST_ALT = 40  # characters


class Chapter:
    """The record of one chapter at one profile.

    Parameters
    ----------
    name : the chapter's file name without ending, for example "03_periodic_behavior".
    profile : at "smoke" a claim is recorded as "not tested": seconds of training cannot decide it.
    """

    def __init__(self, name: str, profile: str):
        self.name, self.profile = name, profile
        self._content = {"chapter": name, "profile": profile}
        self._content |= {"numbers": {}, "claims": {}, "figures": {}}
        self._write()

    def publish(self, **numbers: float | int | str) -> None:
        """Make numbers available to the text of every page as {result}`<chapter>.<name>:<format>`.

        Raises
        ------
        ConfigError : for a value that is neither one number nor text.
        """
        for name, value in numbers.items():
            plain = value.item() if hasattr(value, "item") else value
            if not isinstance(plain, float | int | str):
                kind = type(value).__name__
                raise ConfigError(f"`{name}` must be one number or text; got {kind}.")
            self._content["numbers"][name] = plain
        self._write()

    def limits(self, claim: str) -> SimpleNamespace:
        """Return the numbers of a claim's rule, by name: `chapter.limits("momentum-clock").within`.

        Raises
        ------
        ConfigError : for a claim that is not declared for this chapter, or that declares no limits.
        """
        found = self._declared(claim)["limits"]
        if not found:
            raise ConfigError(
                f"claim {claim!r} has no `limits`: declare them in data/claims/claims.yml."
            )
        return SimpleNamespace(**found)

    def check(
        self,
        claim: str,
        outcomes: Mapping[str, bool] | None,
        measured: str,
        paper_scale: str = "not run",
    ) -> None:
        """Record what was measured on a declared claim, and display it with its verdict, a card.

        Parameters
        ----------
        claim : id in data/claims/claims.yml.
        outcomes : whether the claim's rule is met, one entry per seed or run. None: the runs that
            can decide it are not there yet, and the verdict is "not tested".
        measured : the numbers behind it, with their spread over seeds, in a few words.
        paper_scale : the same at the paper's scale, where a result is kept.

        Raises
        ------
        ConfigError : for a claim that is not declared for this chapter, or without outcomes.
        """
        from IPython.display import display

        self._declared(claim)
        plain = {str(label): bool(value) for label, value in (outcomes or {}).items()}
        untested = self.profile == "smoke" or outcomes is None
        verdict = "not tested" if untested else claims.verdict(plain)
        self._content["claims"][claim] = {
            "verdict": verdict,
            "outcomes": plain,
            "measured": measured,
            "paper_scale": paper_scale,
        }
        self._write()
        display(Checked(claim, verdict, sum(plain.values()), len(plain), measured))

    def show(self, figure: Figure, name: str, alt: str) -> None:
        """Display `figure` with a text alternative, and keep both for other pages under `name`.

        Raises
        ------
        ConfigError : if `alt` is too short to say what is seen.
        """
        from IPython.display import display
        from matplotlib import pyplot

        if len(alt) < SHORTEST_ALT:
            raise ConfigError(
                "`alt` must say what is seen, with its numbers, in "
                f"at least {SHORTEST_ALT} characters; got {alt!r}."
            )
        picture = _png(figure)
        path = claims.records_folder() / "figures" / f"{self.name}-{name}.png"
        write_whole(path, picture)
        self._content["figures"][name] = {"file": path.name, "alt": alt}
        self._write()
        pyplot.close(figure)
        shown = {"image/png": picture, "text/plain": alt}
        display(shown, raw=True, metadata={"image/png": {"alt": alt}})

    def embed(self, name: str, data: Mapping) -> None:
        """Keep plain numbers and text under `name`, for a page on which a reader explores them.

        Raises
        ------
        ConfigError : for more than a page should hold, or a number that is not finite.
        """
        from periodic_lib.publishing import explore

        self._content.setdefault("embedded", {})[name] = explore.as_text(data)
        self._write()

    @staticmethod
    def tabulate(
        table: pd.DataFrame,
        forms: Mapping[str, str | Callable[[object], str]] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Display `table` without its index; see `formatted` for `forms` and `names`.

        Raises
        ------
        ConfigError : if `forms` or `names` has a column that the table has not.
        """
        from IPython.display import display

        text = formatted(table, forms, names)
        html, plain = text.to_html(index=False, border=0), text.to_string(index=False)
        display({"text/html": html, "text/plain": plain}, raw=True)

    @staticmethod
    def paper_scale(experiment: str) -> xr.Dataset | None:
        """Return the result at the paper's scale that is kept in git; else None, and say so."""
        from IPython.display import display

        from periodic_lib import experiments

        dataset = experiments.kept(experiment)
        if dataset is None:
            plan = experiments.plan(experiment, "paper")
            text = NOT_RUN.format(setup=plan.setup, runs=len(plan.runs), name=experiment)
            display({"text/markdown": text, "text/plain": text}, raw=True)
        return dataset

    def _declared(self, claim: str) -> dict:
        """Return the declaration of a claim of this chapter."""
        entries = claims.declared()
        known_names("claim", [claim], tuple(entries))
        chapter = entries[claim]["chapter"]
        if chapter != self.name:
            raise ConfigError(f"claim {claim!r} belongs to chapter {chapter!r}; got {self.name!r}.")
        return entries[claim]

    def _write(self) -> None:
        write_whole(claims.record_path(self.name), json.dumps(self._content, indent=1))


def _png(figure: Figure) -> bytes:
    """Return a figure as PNG in at most 256 colours: a third of the size, the same to the eye."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight")
    colours = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(small, format="png", optimize=True)
    return small.getvalue()


NOT_RUN = (
    "**Not run yet at the paper's scale** ({setup.network}, {setup.dataset}, {runs} runs of "
    "{setup.steps:,} steps). On a machine with a GPU: "
    "`periodic run {name} --profile paper --budget 1500 --keep`; the same command goes on where "
    "the time was used up, and the next build of this page shows the result."
)


# ---------------------------------------------------------------- tables as text


def formatted(
    table: pd.DataFrame,
    forms: Mapping[str, str | Callable[[object], str]] | None = None,
    names: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Return `table` as text, with headers for readers; what is missing (None, nan) becomes "–".

    Parameters
    ----------
    forms : column -> how its values are written: a format such as ".2g", or a function that returns
        text, such as "{:.0f} s".format. Without one, a number has up to six digits.
    names : column -> header. Without one, it is the label of the glossary: `lr` is "learning rate".

    Raises
    ------
    ConfigError : if `forms` or `names` has a column that the table has not.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"lr": [0.1, 1.0], "wait": [12.3, None]})
    >>> text = formatted(table, forms={"wait": ".0f"}, names={"wait": "wait [steps]"})
    >>> print(text.to_string(index=False))
    learning rate wait [steps]
              0.1           12
                1            –
    """
    forms, names, columns = forms or {}, names or {}, list(table.columns)
    for kind, given in (("forms", forms), ("names", names)):
        known_names(f"column in `{kind}`", map(str, given), list(map(str, columns)))
    text = table.astype(object)
    for place, column in enumerate(columns):  # by place: two columns may have one name
        form = forms.get(column)
        text.isetitem(place, [_text(value, form) for value in table.iloc[:, place]])
    return text.set_axis([names.get(name, glossary.label(str(name))) for name in columns], axis=1)


def _text(value: object, form: str | Callable[[object], str] | None) -> str:
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return glossary.MISSING
    if callable(form):
        return form(value)
    if form is None:
        form = ".6g" if isinstance(value, float) else ""
    return format(value, form)
