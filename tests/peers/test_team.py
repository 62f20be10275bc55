"""What workers decide together: one worker's error reaches all, and nobody is left waiting."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from ckptflow.errors import (
    CheckpointNotFoundError,
    CkptflowError,
    CorruptCheckpointError,
    FencedError,
    PeerError,
    SaveFailedError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.format.layout import Folder
from ckptflow.peers import team
from ckptflow.peers.team import Alone, Call, agree, agree_on, called, chief_says
from tests.peers.members import WORKERS, Exchange, Member, together


class Panic(BaseException):
    """As a client's that is written in Rust: no Exception, and an error all the same."""


class Held(msgspec.Struct, frozen=True):
    """What a worker tells."""

    worker: int
    text: str
    folder: Folder | None = None


@dataclass(frozen=True)
class Chosen:
    """What a chief decides."""

    folder: Folder | None
    big: int


def test_every_result_reaches_all_in_order() -> None:
    def tell(member: Member) -> list[Held]:
        return agree(member, Call.WAIT, lambda: Held(member.worker, f"wörker\0 {member.worker}", Folder(7, 3, 2)))

    expected = [Held(worker, f"wörker\0 {worker}", Folder(7, 3, 2)) for worker in range(WORKERS)]
    assert together(tell) == [expected] * WORKERS


def test_one_of_two_results_stays_with_its_worker() -> None:
    kept = [object() for _ in range(WORKERS)]
    found = together(lambda member: agree_on(member, Call.SAVE, lambda: (kept[member.worker], member.worker)))
    assert found == [(mine, list(range(WORKERS))) for mine in kept]


def test_a_process_alone_sends_nothing() -> None:
    thing = object()
    assert agree(Alone(), Call.WAIT, lambda: thing) == [thing]
    assert chief_says(Alone(), Call.LOOK, lambda: thing, object) is thing


@pytest.mark.parametrize("failing", range(WORKERS))
@pytest.mark.parametrize(
    ("error", "others"),
    [
        (KeyError("kernel"), PeerError),
        (MemoryError("2 TiB"), PeerError),
        (Panic("a client's"), PeerError),
        (StorageUnavailableError("503"), PeerError),
        (FencedError("another copy"), FencedError),
    ],
)
def test_one_workers_error_reaches_all(failing: int, error: BaseException, others: type[Exception]) -> None:
    def work(member: Member) -> object:
        def part() -> int:
            if member.worker == failing:
                raise error
            return 1

        return agree(member, Call.WAIT, part)

    raised = together(work)
    assert raised[failing] is error
    for worker, other in enumerate(raised):
        if worker != failing:
            assert type(other) is others
            assert str(error.args[0]) in str(other)
            if others is PeerError:
                assert f"worker {failing} failed" in str(other)
                is_ours = isinstance(error, CkptflowError)
                assert type(other.__cause__) is (type(error) if is_ours else type(None))


@pytest.mark.parametrize("is_chief", [True, False])
def test_no_credential_reaches_the_others(is_chief: bool) -> None:
    """The worker itself raises its own error as it is; what cannot be written as JSON is told of without one, too."""
    url = "https://bob:hunter2@db.example/x?token=SECRETTOKEN"

    class Unwritable:
        pass

    Unwritable.__qualname__ = Unwritable.__name__ = f"Unwritable of {url}"

    def work(member: Member) -> object:
        def part() -> int:
            if member.worker != (0 if is_chief else 1):
                return 1
            raise ValueError(f"get_state: cannot reach {url}")

        if is_chief:
            return chief_says(member, Call.LOOK, part, int)
        return agree(member, Call.SAVE, part)

    own, *others = sorted(map(str, together(work)), key=lambda text: "hunter2" not in text)
    assert url in own
    assert len(others) == WORKERS - 1
    for text in [*others, *map(str, together(lambda member: agree(member, Call.SAVE, Unwritable)))]:
        assert "db.example" in text, text
        assert "hunter2" not in text, text
        assert "SECRETTOKEN" not in text, text


def test_being_fenced_goes_before_an_own_failure() -> None:
    def work(member: Member) -> object:
        def part() -> int:
            raise (FencedError("another copy"), SaveFailedError("disk full"), SaveFailedError("disk full"))[
                member.worker
            ]

        return agree(member, Call.WAIT, part)

    assert [type(error) for error in together(work)] == [FencedError] * WORKERS


def test_who_leaves_the_program_leaves_without_a_word() -> None:
    for leaving in (KeyboardInterrupt(), SystemExit(0)):

        def leave(error: BaseException = leaving) -> int:
            raise error

        member = Member(Exchange(2), 0)  # the other one never comes
        with pytest.raises(type(leaving)):
            agree(member, Call.WAIT, leave)
        with pytest.raises(type(leaving)):
            chief_says(member, Call.LOOK, leave, int)


def test_the_chiefs_decision_reaches_all() -> None:
    chosen = Chosen(Folder(5, 6, 7), 2**62 - 1)
    assert together(lambda member: chief_says(member, Call.LOOK, lambda: chosen, Chosen)) == [chosen] * WORKERS


@pytest.mark.parametrize(
    ("error", "others"),
    [
        (CheckpointNotFoundError("no step 7"), CheckpointNotFoundError),
        (CorruptCheckpointError("crc32c"), CorruptCheckpointError),
        (FencedError("another copy"), FencedError),
        (UsageError("first restore"), UsageError),
        (StorageUnavailableError("503"), StorageUnavailableError),
        (ZeroDivisionError("a bug"), PeerError),
        (Panic("a client's"), PeerError),
    ],
)
def test_the_chiefs_error_reaches_all_in_its_own_class(error: BaseException, others: type[CkptflowError]) -> None:
    def decide() -> int:
        raise error

    raised = together(lambda member: chief_says(member, Call.LOOK, decide, int))
    assert raised[0] is error
    for other in raised[1:]:
        assert type(other) is others
        assert error.args[0] in str(other)


def test_workers_that_call_different_things_are_named() -> None:
    def work(member: Member) -> object:
        if member.worker == 2:
            return chief_says(member, Call.LOOK, lambda: 1, int)
        return agree(member, called(Call.SAVE, step=5 + member.worker), lambda: 1)

    for error in together(work):
        assert isinstance(error, UsageError)
        assert "worker 0: save(step=5); worker 1: save(step=6); worker 2: restore: choose" in str(error)


def test_of_many_workers_that_call_the_same_eight_are_named() -> None:
    """Those that differ come first: the text stays short, and says who is to be looked at."""

    def work(member: Member) -> object:
        return agree(member, called(Call.SAVE, step=6 if member.worker == 17 else 5), lambda: 1)

    for error in together(work, 30):
        text = str(error).partition(" points. ")[2]
        assert text == "worker 17: save(step=6); workers 0, 1, 2, 3, 4, 5, 6, 7 and 21 more: save(step=5)"


def test_where_each_of_many_calls_something_else_eight_are_told() -> None:
    def work(member: Member) -> object:
        return agree(member, called(Call.SAVE, step=member.worker), lambda: 1)

    for error in together(work, 30):
        assert str(error).endswith("worker 6: save(step=6); worker 7: save(step=7) and 22 more")


def test_a_message_that_is_too_large_is_refused_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "MAX_MESSAGE_BYTES", 1000)
    for error in together(lambda member: agree(member, Call.WAIT, lambda: "x" * (2000 * (member.worker == 1)))):
        assert isinstance(error, PeerError)
        assert "worker 1" in str(error)
        assert "2,002 bytes, more than 1,000" in str(error)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"call": 1}', b"\xff", b'{"call": "wait()", "value": "no number"}'])
def test_a_message_that_does_not_decode_is_refused_with_its_workers_name(data: bytes) -> None:
    class Garbling(Member):
        def exchange(self, message: bytes, call: str) -> list[bytes]:
            return super().exchange(data if self.worker == 1 else message, call)

    exchange = Exchange(WORKERS)

    def work(member: Member) -> object:
        return agree(Garbling(exchange, member.worker), Call.WAIT, lambda: 1)

    for error in together(work):
        assert isinstance(error, PeerError)
        assert "worker 1's message cannot be read" in str(error)


def test_a_long_error_is_cut_and_stays_text() -> None:
    def work(member: Member) -> object:
        def part() -> int:
            raise ValueError("ü" * 10_000 + "\ud800")

        return agree(member, Call.WAIT, part) if member.worker else chief_says(member, Call.WAIT, lambda: 1, int)

    error = together(work, 2)[0]
    assert isinstance(error, PeerError)
    assert 3_900 < str(error).count("ü") <= 4_000
