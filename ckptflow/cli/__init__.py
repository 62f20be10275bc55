"""The command `ckptflow`: starts without TensorFlow, and without fsspec or NumPy until a verb needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command and leaves by SystemExit, with a code of `exits.EXITS`. `args` default to the command line's."""
    from ckptflow.cli.app import app
    from ckptflow.cli.exits import report

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names are any Unicode; a terminal may not be
    try:
        app(args=args, prog_name="ckptflow")
    except Exception as error:
        if os.environ.get("CKPTFLOW_TRACEBACK"):
            raise
        sys.exit(report(error))
