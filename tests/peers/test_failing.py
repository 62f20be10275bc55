"""What one worker tells of its error, and how another raises it."""

from __future__ import annotations

import msgspec

from ckptflow.errors import SaveFailedError, StorageFullError
from ckptflow.format.failure import Failure
from ckptflow.peers.failing import MAX_CHARACTERS, failure_of


def sent(error: BaseException) -> Failure:
    return msgspec.json.decode(msgspec.json.encode(failure_of(error)), type=Failure)


def test_it_comes_as_its_own_class_from_its_cause() -> None:
    """A full storage on another worker is one here: what makes room for it goes by the class."""
    failed = SaveFailedError("was not saved")
    failed.__cause__ = StorageFullError("no space")
    rebuilt = sent(failed).rebuild()
    assert type(rebuilt) is SaveFailedError
    assert str(rebuilt) == "was not saved"
    assert isinstance(rebuilt.__cause__, StorageFullError)


def test_what_is_not_ours_is_told_and_not_rebuilt() -> None:
    assert sent(KeyError("mine")).rebuild() is None
    assert str(sent(KeyError("mine"))) == "KeyError: 'mine'"
    assert Failure(kind="LEAVING", message="").rebuild() is None
    assert Failure(kind="CkptflowError", message="m", cause="SystemExit").rebuild().__cause__ is None  # type: ignore[union-attr]


def test_a_text_that_cannot_be_had_or_sent_is_told_as_far_as_it_can() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert sent(OddError()).message == "(it has no text)"
    assert sent(KeyError("\udc80" * 9)).kind == "KeyError"
    assert len(sent(SaveFailedError("a" * 10**6)).message) == MAX_CHARACTERS
