"""docs/matrix.md: which pairs there are, and what the page says of them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.matrix.settings import EXTRAS, SQUARE, TENSORS, label_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "matrix.md"
EQUAL = "equal"
Pair = tuple[str, str]  # saved under, restored under

PAIRS: tuple[Pair, ...] = (
    *itertools.product(SQUARE, SQUARE),
    *((extra, "none") for extra in EXTRAS),
    *(("none", extra) for extra in EXTRAS),
)

_TEXT = """\
# Saved under one strategy, restored under another

Written by `make matrix MATRIX_ARGS=--write`; do not edit. It ran with {versions}.

Real processes on one machine, on CPUs. The state is the same under all: a `tf.Module` with variables of several shapes
and dtypes, and a trained Adam of tf_keras with its slots, {count} tensors in all. *Equal*: every copy and every block
that any process held after the restore is, bit for bit, what NumPy reads from the checkpoint without TensorFlow, and
that is what the processes held that saved it. Training then went on for a step, and what that saved was compared too.

{tables}

`MultiWorkerMirrored xN` is N processes. `ParameterServer` is a chief, a worker and two servers; its parts are what
the partitioner makes of each variable. `DTensor` is a mesh of four CPU devices in one process, except `2 clients`.

TPU's variables are the classes that `TPUStrategy` makes its variables of, on CPU devices. No TPU or GPU was available:
nothing in these tables has run on one.
"""


def page(results: Mapping[Pair, str]) -> str:
    """The page for the word on each pair."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    packages = (f"{name} {version(name)}" for name in ("ckptflow", "tensorflow", "tf_keras", "numpy"))
    return _TEXT.format(versions=", ".join([python, *packages]), count=len(TENSORS["module"]), tables=tables(results))


def tables(results: Mapping[Pair, str]) -> str:
    """The two tables of the page."""
    lines = [
        "| saved under ↓, restored under → | " + " | ".join(SQUARE.values()) + " |",
        "|---" * (len(SQUARE) + 1) + "|",
        *(f"| {label} | " + " | ".join(results[row, column] for column in SQUARE) + " |"
          for row, label in SQUARE.items()),
        "",
        "| other strategies | saved there, restored without a strategy | the reverse |",
        "|---|---|---|",
        *(f"| {label_of(extra)} | {results[extra, 'none']} | {results['none', extra]} |" for extra in EXTRAS),
    ]  # fmt: skip
    return "\n".join(lines)
