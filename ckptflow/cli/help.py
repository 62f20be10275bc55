"""How `--help`, usage lines and errors of usage look: in the words of a manual, and without a credential."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ckptflow.storage.redaction import redact

_BETWEEN = re.compile(r"\b([\d.]+)<=x<=([\d.]+)")
_AT_LEAST = re.compile(r"\bx>=([\d.]+)")


class Verbs(TyperGroup):
    """The command, which shows no credential of a command line that it does not understand."""

    def make_context(self, *args: Any, **named: Any) -> Any:
        with _redacted_usage():
            return super().make_context(*args, **named)

    def invoke(self, ctx: Any) -> Any:
        with _redacted_usage():
            return super().invoke(ctx)


@contextmanager
def _redacted_usage() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # of the parser, whose classes have no public name
            error.message = redact(error.message or "")  # type: ignore[attr-defined]
        raise


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
