"""Plotly figures on a page: where each goes, and the script that draws them."""

from __future__ import annotations

import html

import plotly.graph_objects as go
from markupsafe import Markup

from ckptflow.printable import printable, printable_json


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


def plain(text: str) -> str:
    """Text as it is: plotly reads a small HTML, and formulas between dollars, in which a name may not take part."""
    return html.escape(printable(" ".join(text.split())), quote=False).replace("$", "&#36;")
