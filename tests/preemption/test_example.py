"""examples/preemption.py, run as its first lines say."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import ckptflow
from tests.processes import Worker, start_python
from tests.waiting import HANG_S


@contextlib.contextmanager
def start(url: Path, steps: int) -> Iterator[Worker]:
    log = url.with_name(f"{steps}.log")
    command = ["-m", "examples.preemption", str(url), "--steps", str(steps), "--save-every", "1000000"]
    with log.open("wb") as out:
        process = Worker(0, start_python(command, {}, out, out), log)
    try:
        yield process
    finally:
        process.kill()


def test_it_is_told_to_leave_and_goes_on(tmp_path: Path) -> None:
    with start(tmp_path / "spot", 10_000_000) as first:
        first.wait_for_output("step 250: loss", HANG_S)
        first.send(signal.SIGTERM)
        assert first.wait(HANG_S) == 75
        assert re.search(r"committed after .*leaving with exit code 75", first.output()), first.output()
    (saved,) = ckptflow.list_checkpoints(tmp_path / "spot")
    assert saved.step >= 250
    with start(tmp_path / "spot", saved.step + 20) as again:
        assert again.wait(HANG_S) == 0
        assert re.search(rf"begins with step {saved.step + 1}\b.*finished", again.output(), re.DOTALL), again.output()
