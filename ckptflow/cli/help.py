"""How `--help` and usage lines look: in the words of a manual, not of the parser."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

_BETWEEN = re.compile(r"\b([\d.]+)<=x<=([\d.]+)")
_AT_LEAST = re.compile(r"\bx>=([\d.]+)")


class Verb(TyperCommand):
    """A verb whose arguments are shown by their names alone, and whose limits are said in words."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for kind, title in (("argument", "Arguments"), ("option", "Options")):
            records = [each.get_help_record(ctx) for each in self.get_params(ctx) if each.param_type_name == kind]
            rows = [(name.removesuffix(" <str>"), plain_limits(text)) for name, text in filter(None, records)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def plain_limits(text: str) -> str:
    """`x>=1` and `1<=x<=64`, as the parser shows them, in words. Pure."""
    return _AT_LEAST.sub(r"at least \1", _BETWEEN.sub(r"\1 to \2", text))
