"""What every page of figures is made of: one HTML file that reads nothing from anywhere, light or dark, wide or narrow.

Templates escape what they are given: strings from storage are text on the page, never markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ckptflow.printable import lines_of


def render(
    template: str,
    *,
    title: str,
    generator: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    packages: Sequence[str] = (),
    **values: Any,
) -> str:
    """The page that `template` makes of `values`. `generator` says, within the page, what made it; templates are also
    looked for in `packages`."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "ckptflow.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: lines_of(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template).render(title=title, generator=generator, **values)
