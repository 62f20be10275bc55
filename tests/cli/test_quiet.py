"""The notes of libraries that are being loaded are not shown, and everything else is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ckptflow.cli import quiet
from tests.processes import run_python

NOTES = """
import os
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
os.write(2, b"I0000 00:00:1796103904.332776 23076 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"E0000 this matters\\n")
"""


def test_only_the_notes_are_left_out_also_where_a_load_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImportError), quiet.without_notes():
        exec(NOTES + "raise ImportError('a library is missing')")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "E0000 this matters\nafter\n"


def test_tensorflow_is_found_once_whoever_imports_it(tmp_path: Path) -> None:
    """One of a few lines stands in for it: the real one takes seconds to load."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(NOTES)
    script = (
        "import sys; from ckptflow.cli.quiet import load_quietly; load_quietly(); before = len(sys.meta_path)\n"
        "import tensorflow; print(type(tensorflow.__spec__.loader).__name__, before - len(sys.meta_path))"
    )
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    done = run_python("-c", script, env={"PYTHONPATH": path}, cwd=tmp_path, fresh=True)
    assert (done.stdout, done.stderr) == ("SourceFileLoader 1\n", "E0000 this matters\n")
