"""Stock readers: programs that run in a process of their own, in which ckptflow cannot be imported."""

from __future__ import annotations

import json
import subprocess
import textwrap
from typing import Any

from tests.processes import run_python

_BEFORE = """
import json, sys
sys.modules["ckptflow"] = None  # an import of it raises
argument = json.loads(sys.argv[1])
"""
_AFTER = """
print("\\n" + json.dumps(answer))
"""


def run_stock(program: str, argument: Any = None, *, timeout_s: float = 240, python: str | None = None) -> Any:
    """Runs `program`, which finds `argument` (JSON) and leaves its answer (JSON) in `answer`; returns that.

    Arrays go through files: hand over a path, `numpy.save` there.
    """
    command = ["-c", _BEFORE + textwrap.dedent(program) + _AFTER, json.dumps(argument)]
    if python is None:
        done = run_python(*command, timeout_s=timeout_s, kind="stock")
    else:
        done = subprocess.run([python, *command], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.rstrip().rpartition("\n")[2])
