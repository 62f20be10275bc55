"""How things look in a terminal: sizes, ages, names, tables and bars."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Literal

from ckptflow.format.words import age_text, count_text, size_text
from ckptflow.printable import lines_of, printable
from ckptflow.spans import Span, listen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "WIDE",
    "Bar",
    "Justify",
    "age_text",
    "bar",
    "bar_of_spans",
    "count_text",
    "make_console",
    "metrics_text",
    "pin_text",
    "print_facts",
    "print_table",
    "size_text",
    "time_text",
    "utc_text",
]

Justify = Literal["left", "right"]
WIDE = 110  # columns from which on tables show all they know
_UNLIMITED = 100_000
_FOLDED = 16  # columns that a folded text has at least: words and numbers in it stay in one piece
_BAR_AFTER_S = 0.8  # work that is done by then needs no bar


def time_text(created_at: datetime) -> str:
    """In this machine's time zone, to the second."""
    return created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def utc_text(created_at: datetime) -> str:
    """ISO 8601 in UTC, for JSON."""
    return created_at.astimezone(UTC).isoformat()


def metrics_text(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{printable(name)}={value:.5g}" for name, value in metrics.items())


def pin_text(names: Sequence[str]) -> str:
    return f"pinned as {', '.join(names)}" if names else "pinned"


def make_console(file: IO[str] | None = None) -> Console:
    """A console that shows text as it is; in a pipe lines are never wrapped or cut."""
    from rich.console import Console

    class Printable(Console):
        """What is printed as text holds nothing that a terminal would obey; styles are rich's own."""

        def print(self, *objects: Any, **words: Any) -> None:
            super().print(*(lines_of(each) if isinstance(each, str) else each for each in objects), **words)

    stream = file or sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _UNLIMITED
    return Printable(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_table(
    console: Console, columns: Mapping[str, Justify], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    """Prints a table without frames, each row in its style.

    On a narrow console texts are folded, and numbers never: if that is not enough, each row is a block of lines.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    styles = styles or [""] * len(rows)
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) - 2 > console.width:
        in_columns = zip(columns, *rows, strict=True)
        words = [max((cell_len(word) for cell in cells for word in cell.split()), default=0) for cells in in_columns]
        least = [
            width if justify == "right" else min(_FOLDED, word)
            for justify, width, word in zip(columns.values(), widths, words, strict=True)
        ]
        if sum(least) + 2 * len(least) - 2 > console.width:
            for number, (row, style) in enumerate(zip(rows, styles, strict=True)):
                facts = [(name, cell) for name, cell in zip(columns, row, strict=True) if cell]
                console.print(*([""] if number else []), _facts_table(facts), sep="\n", style=style)
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for (name, justify), width in zip(columns.items(), least, strict=True):
            table.add_column(name, justify=justify, overflow="fold", min_width=width, no_wrap=justify == "right")
        for row, style in zip(rows, styles, strict=True):
            table.add_row(*(Text(cell) for cell in row), style=style)
        console.print(table)
        return
    # What need not be folded is padded here: ten times as fast, and a root may hold 10,000 checkpoints.
    lines = Text()
    for row, style in zip((list(columns), *rows), ("bold", *styles), strict=True):
        padding = (" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        sides = zip(row, padding, columns.values(), strict=True)
        cells = (space + cell if justify == "right" else cell + space for cell, space, justify in sides)
        lines.append("  ".join(cells).rstrip() + "\n", style or None)
    console.print(lines, end="", soft_wrap=True)


def print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    """Prints a line for each name and what there is to say of it."""
    console.print(_facts_table(facts))


def _facts_table(facts: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(printable(value)))
    return grid


class Bar:
    """A progress bar on stderr: none where that is no terminal, none for what is quickly done."""

    def __init__(self, what: str, *, is_bytes: bool, is_long: bool) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Speed(ProgressColumn):
            """In the units that sizes have; rich's own counts speeds in powers of 1000."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{size_text(int(speed))}/s" if speed else "")

        console = make_console(sys.stderr)
        shown = (DownloadColumn(binary_units=True), Speed()) if is_bytes else (MofNCompleteColumn(),)
        columns = (TextColumn("{task.description}"), BarColumn(), *shown, TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=None)
        self._start_s = time.monotonic()
        self._is_shown = is_long
        if is_long:
            self._progress.start()

    def expect(self, total: int) -> None:
        """So much there is to do in all."""
        self._progress.update(self._task, total=total)

    def say(self, what: str, done: int, total: int) -> None:
        """What is being done, and how far it is."""
        self._progress.update(self._task, description=what, completed=done, total=total)

    def advance(self, amount: int) -> None:
        """So much more is done. From any thread."""
        self._progress.advance(self._task, amount)
        if not self._is_shown and time.monotonic() - self._start_s > _BAR_AFTER_S:
            self._is_shown = True
            self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    @property
    def is_seen(self) -> bool:
        """Whether there is a terminal to show it: what only the bar needs may be left out else."""
        return not self._progress.disable


@contextmanager
def bar_of_spans(what: str, name: str) -> Iterator[Bar]:
    """A bar for calls that know no bar: it advances by the bytes of each span called `name`."""
    with bar(what, is_bytes=True, is_long=True) as progress:

        def advance(span: Span) -> None:
            if span.name == name:
                progress.advance(span.arguments["size_bytes"])

        with listen(advance):
            yield progress


@contextmanager
def bar(what: str, *, is_bytes: bool = False, is_long: bool = False) -> Iterator[Bar]:
    """A bar that is gone when the block is left, and there at once for what is certain to be long."""
    shown = Bar(what, is_bytes=is_bytes, is_long=is_long)
    try:
        yield shown
    finally:
        shown.stop()
