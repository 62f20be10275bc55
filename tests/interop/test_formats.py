"""The table of formats: its handlers are there, and none of a light format loads TensorFlow."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.interop.formats import FORMATS, Format, by_suffix, handler
from tests.waiting import HANG_S

ROWS = FORMATS.values()
READ = {"unsafe": False, "imports": (), "optimizer": True, "state": None}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_handler_takes_what_it_is_called_with(row: Format) -> None:
    signatures = {"signatures": None, "input_signature": None} if row.has_signatures else {}
    inspect.signature(handler(row.writer)).bind("path", "content", "provenance", **signatures)
    if row.reader is not None:
        inspect.signature(handler(row.reader)).bind("source", **READ)
    if row.origin is not None:
        inspect.signature(handler(row.origin)).bind("file", "where")


def test_a_file_that_a_suffix_tells_says_where_it_comes_from() -> None:
    assert [row.name for row in ROWS if row.suffixes and row.origin is None] == ["tf-checkpoint"]  # not one file
    assert all(by_suffix(f"x{suffix}") is row for row in ROWS for suffix in row.suffixes)


def run(program: str, *arguments: str) -> str:
    program = f"{program}\nprint(sorted({{'tensorflow', 'keras', 'tf_keras'}} & set(sys.modules)))"
    command = [sys.executable, "-c", f"import sys\n{program}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_origin_loads_tensorflow() -> None:
    program = "from ckptflow.interop.formats import FORMATS, handler\n"
    assert run(f"{program}[handler(row.origin) for row in FORMATS.values() if row.origin]") == "[]"


def test_tensors_go_through_safetensors_without_tensorflow(tmp_path: Path) -> None:
    with ckptflow.CheckpointManager(str(tmp_path / "run"), {"v": tf.Variable([1.0, 2.0])}) as manager:
        manager.save(3).result()
    program = """
from ckptflow.interop.export import export_checkpoint
from ckptflow.interop.import_ import import_model
run, file, other = sys.argv[1:]
export_checkpoint(run, file)
import_model(file, other)
"""
    paths = [str(tmp_path / name) for name in ("run", "v.safetensors", "other")]
    assert run(program, *paths) == "[]"
    with ckptflow.open_checkpoint(paths[2]) as found:
        assert np.array_equal(found["v"], [1.0, 2.0])


def test_each_joiner_takes_what_it_is_called_with() -> None:
    for entry in FORMATS.values():
        if entry.joiner is not None:
            inspect.signature(handler(entry.joiner)).bind("path", "place", "folder", None, is_compared=True)
