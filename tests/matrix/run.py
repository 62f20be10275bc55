"""All pairs of settings: `make matrix`. Saves under each, restores under each, compares bit for bit, prints the table.

python -m tests.matrix.run           prints the table; exit code 1 unless every pair is equal
python -m tests.matrix.run --write   also writes docs/matrix.md
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from tests.matrix.launch import Visit, differences, read, run_group, steps_of
from tests.matrix.page import EQUAL, PAGE, PAIRS, Pair, page
from tests.matrix.settings import EXTRAS, GROUPS, SQUARE, TENSORS, Group

Array = npt.NDArray[Any]


def main() -> None:
    """See the module's words."""
    parser = argparse.ArgumentParser(description="save under each setting, restore under each")
    parser.add_argument("--write", action="store_true", help=f"also write {PAGE.name}")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="ckptflow-matrix-") as folder:
        results, problems = run_all(Path(folder), console)
    console.print("saved under (row), restored under (column)")
    console.print(_square(results), _beside(results), sep="\n\n")
    for lines in problems:
        console.print(lines, markup=False)
    if arguments.write:
        PAGE.write_text(page(results))
    sys.exit(0 if all(result == EQUAL for result in results.values()) else 1)


def run_all(base: Path, console: Console) -> tuple[dict[Pair, str], list[str]]:
    """The word for each pair, and what is to be said about those that are not equal."""
    problems: list[str] = []
    for group in GROUPS:
        console.print(f"saving: {group.name} ({len(group.tasks)} processes)", highlight=False)
        visits = [Visit(name, "module", str(base / "saved" / name), str(base / "dumps" / name), seed=_seed(name))
                  for name in group.settings]  # fmt: skip
        problems += _run(group, visits, base)
    results: dict[Pair, str] = {}
    for group in GROUPS:
        pairs = [pair for pair in PAIRS if pair[1] in group.settings]
        console.print(f"restoring: {group.name}, {len(pairs)} pairs", highlight=False)
        visits = [_copy(base, saved, restored) for saved, restored in pairs]
        problems += _run(group, visits, base)
        for (saved, restored), visit in zip(pairs, visits, strict=True):
            found = compare(base / "saved" / saved, base / "dumps" / saved, visit)
            results[saved, restored] = "DIFFERS" if found else EQUAL
            problems += [f"saved under {saved}, restored under {restored}: {line}" for line in found[:5]]
        shutil.rmtree(base / "pairs")
    return results, problems


def compare(root: Path, dumps: Path, visit: Visit) -> list[str]:
    """What is wrong with one pair: what was held when it was saved, what is in storage, what was held when restored.

    Also what the restoring setting saved itself one step later, in its copy of the root.
    """
    steps = [steps_of(root)[-1:], steps_of(visit.root)[-2:]]
    if len(steps[0]) != 1 or steps[1] != [steps[0][0], steps[0][0] + 1]:
        return [f"steps {steps[0]} were saved, and after the restore there are {steps[1]}"]
    saved = read(root, steps[0][0])
    again = read(visit.root, steps[1][1])
    expected = TENSORS[visit.what]
    return [
        *(f"when saved: {line}" for line in differences(saved, dumps / "saved", expected)),
        *differences(saved, Path(visit.dumps) / "restored", expected),
        *(f"one step later: {line}" for line in differences(again, Path(visit.dumps) / "saved", expected)),
        *(f"one step later: {name} is as it was" for name in unchanged(saved, again)),
    ]


def unchanged(before: Mapping[str, Array], after: Mapping[str, Array]) -> list[str]:
    """The tensors that a training step should have changed and did not."""
    return [name for name in before if "learning_rate" not in name and np.array_equal(before[name], after[name])]


def _seed(setting: str) -> int:
    return [*SQUARE, *EXTRAS].index(setting)


def _copy(base: Path, saved: str, restored: str) -> Visit:
    """A restore claims and saves: each pair has a copy of the root."""
    root = base / "pairs" / f"{saved}--{restored}"
    source = base / "saved" / saved
    if source.exists():
        shutil.copytree(source, root / "root")
    return Visit(restored, "module", str(root / "root"), str(root / "dumps"), seed=100 + _seed(restored))


def _run(group: Group, visits: list[Visit], base: Path) -> list[str]:
    try:
        run_group(group, visits, base, timeout_s=900)
    except (RuntimeError, TimeoutError) as error:
        return [str(error)]
    return []


def _square(results: Mapping[Pair, str]) -> Table:
    """With numbers above the columns, so that it fits a terminal."""
    table = Table(box=None, padding=(0, 0, 0, 1))
    for heading in ("", *(str(number) for number, _ in enumerate(SQUARE, start=1))):
        table.add_column(heading, no_wrap=True)
    for number, (row, label) in enumerate(SQUARE.items(), start=1):
        table.add_row(f"{number} {label}", *(results[row, column] for column in SQUARE))
    return table


def _beside(results: Mapping[Pair, str]) -> Table:
    table = Table("beside the square", "saved there", "restored there", box=None, padding=(0, 0, 0, 1))
    for extra, label in EXTRAS.items():
        table.add_row(label, results[extra, "none"], results["none", extra])
    return table


if __name__ == "__main__":
    main()
