"""The command `ckptflow`: a module for each verb, which says what there is and decides nothing about it.

It starts without TensorFlow, and without fsspec, NumPy and msgspec until a verb needs them: so verbs import what they
work with in their functions. `--help` and completion take 0.16 s of the processor, with all verbs' imports 0.66 s.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command and leaves by SystemExit, with a code of `exits.EXITS`. `args` default to the command line's."""
    from ckptflow.cli.app import app
    from ckptflow.cli.exits import report

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names are any Unicode; a terminal may not be
    with _heeding_sigterm():
        try:
            app(args=args, prog_name="ckptflow")
        except Exception as error:
            if os.environ.get("CKPTFLOW_TRACEBACK"):
                raise
            sys.exit(report(error))


@contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """In the block, SIGTERM leaves by SystemExit as Ctrl-C does by its own: what is half done is cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
