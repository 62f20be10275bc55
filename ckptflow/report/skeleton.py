"""What every page of figures is made of: one HTML file that reads nothing from anywhere, light or dark, wide or narrow.

Templates escape what they are given: strings from storage are text on the page, never markup.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ckptflow.printable import lines_of, printable, printable_json

# Okabe and Ito's: told apart by colour-blind people, and seen on light ground and dark.
BLUE, SKY, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"


class Figures:
    """The figures of one page, in the order in which they are placed."""

    def __init__(self) -> None:
        self._sources: list[str] = []

    def place(self, figure: go.Figure, label: str = "") -> Markup:
        """Where the page's script draws `figure`; `label` is what a screen reader says of it."""
        self._sources.append(printable_json(figure.to_json()))
        number, height = len(self._sources) - 1, figure.layout.height
        said = Markup(' role="img" aria-label="{}"').format(printable(label)) if label else ""
        return Markup('<div class="plot" data-figure="{}"{} style="height:{}px"></div>').format(number, said, height)

    def json(self) -> Markup:
        """All of them; plotly writes `<` in its JSON so that no string ends the element that it is in."""
        return Markup(f"[{','.join(self._sources)}]")


def render(
    template: str,
    figures: Figures,
    *,
    title: str,
    generator: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """The page that `template` makes of `values`. `generator` says, within the page, what made it."""
    environment = _environment()
    environment.filters.update(filters or {})
    return environment.get_template(template).render(
        title=title,
        generator=generator,
        figures=figures.json(),
        plotly=Markup(get_plotlyjs()),
        **values,
    )


def plain(text: str) -> str:
    """Text as it is: plotly reads a small HTML, and formulas between dollars, in which a name may not take part."""
    return html.escape(printable(" ".join(text.split())), quote=False).replace("$", "&#36;")


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("ckptflow.report")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: lines_of(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
