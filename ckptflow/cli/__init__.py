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
    from ckptflow.cli.exits import is_lost, print_error, report, report_lost
    from ckptflow.cli.retries import briefly_retrying
    from ckptflow.storage.redaction import redact

    # Closed by who started it. The first free descriptor is the stream's own, so that no other file becomes it.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names are any Unicode; a terminal may not be
    output = sys.stdout
    as_json = "--json" in (sys.argv[1:] if args is None else args)
    with _heeding_sigterm(), briefly_retrying():
        try:
            try:
                app(args=args, prog_name="ckptflow")
            finally:
                output.flush()  # a last line that cannot be written is no success
        except SystemExit as left:
            if isinstance(left.__context__, BrokenPipeError):  # typer and rich leave by 1, which is ours for damage
                sys.exit(report_lost(output, left.__context__))
            message = getattr(left.__context__, "format_message", None)  # of a wrong command line: told on stderr
            if as_json and message is not None:
                print_error(type(left.__context__).__name__, redact(message()), int(left.code or 0))
            raise
        except Exception as error:
            if is_lost(output, error):
                sys.exit(report_lost(output, error))
            sys.exit(report(error, as_json=as_json))


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
