"""Run in a new process: restores every case from a folder, trains it on by a step, and saves before and after.

The last case comes first: what Keras and TensorFlow have counted by then is something else than where it was saved.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from tests.state import roundtrip
from tests.state.cases import CASES
from tests.state.roundtrip import answer_bytes


def main(folder: Path) -> None:
    """The other half of `test_roundtrip`."""
    for position, (name, case) in reversed(list(enumerate(CASES.items()))):
        try:
            state = case.make()
            restoring = roundtrip.restore(state, roundtrip.read(folder / f"{position}-saved"))
            assert (restoring.missing, restoring.unexpected) == ((), ())
            roundtrip.save(state).write(folder / f"{position}-restored")
            if case.answer:
                (folder / f"{position}-answer.bin").write_bytes(answer_bytes(case.answer(state)))
            case.train(state)
            roundtrip.save(state).write(folder / f"{position}-after")
            lost = roundtrip.lost(state)
            assert not lost, lost
        except Exception:
            (folder / f"{position}-problem.txt").write_text(f"{name}\n{traceback.format_exc()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
