"""What a manager tells of: the right events in the right order, never on the training thread, none lost."""

from __future__ import annotations

import functools
import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

import ckptflow
from ckptflow import CheckpointManager, KeepLast, SaveFailedError
from ckptflow.commit.catalog import read_manifest
from ckptflow.errors import StorageAccessError
from ckptflow.events import (
    Claimed,
    Committed,
    Damaged,
    Event,
    Pruned,
    Restored,
    Retried,
    SaveBegan,
    SaveFailed,
    ShardsWritten,
)
from ckptflow.format.layout import Folder
from ckptflow.job import hooks
from ckptflow.job.hooks import Hooks, as_fields, as_line
from ckptflow.storage.opening import open_store
from ckptflow.storage.wrappers import FaultyStore
from tests.manager.states import Weights, wrap_store
from tests.processes import run_python
from tests.waiting import HANG_S


def kinds(told: list[Event]) -> list[str]:
    return [event.name for event in told]


def test_a_life_is_told_in_order_with_true_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ckptflow")
    root, told, threads = tmp_path / "run", list[Event](), set[str]()

    def hook(event: Event) -> None:
        told.append(event)
        threads.add(threading.current_thread().name)

    with CheckpointManager(root, {"m": Weights()}, keep=KeepLast(1), on_event=hook) as manager:
        manager.save(1, metrics={"loss": 0.5})
        manager.save(2)
    save = ["save_began", "shards_written", "committed"]
    assert kinds(told) == ["claimed", *save, *save, "pruned"]
    assert threads == {"ckptflow-events"}
    assert {event.url for event in told} == {str(root)}
    claimed, began, written, committed = told[:4]
    assert isinstance(claimed, Claimed)
    assert (claimed.incarnation, claimed.reason) == (1, "start")
    assert isinstance(began, SaveBegan)
    assert 0 < began.capture_s <= began.blocked_s
    assert isinstance(written, ShardsWritten)
    assert isinstance(committed, Committed)
    assert began.blocked_s < written.write_s < committed.save_s
    size_bytes = sum(path.stat().st_size for path in (root / "000000000002-i0001").glob("shard-*"))
    assert written.size_bytes == committed.size_bytes == size_bytes
    assert committed.gib_per_s == pytest.approx(size_bytes / 2**30 / committed.save_s)
    assert (committed.step, committed.folder, committed.metrics) == (1, "000000000001-i0001", {"loss": 0.5})
    pruned = told[-1]
    assert isinstance(pruned, Pruned)
    assert (pruned.folder, pruned.reason) == ("000000000001-i0001", "no policy retains it")
    assert pruned.size_bytes > size_bytes  # manifest and receipt, too
    assert sum("pruned" in message for message in caplog.messages) == 1
    assert 0 < pruned.freed_bytes <= pruned.size_bytes

    told.clear()
    with CheckpointManager(root, {"m": Weights()}, on_event=[hook]) as manager:
        found = manager.restore_latest()
    assert found is not None
    assert kinds(told) == ["claimed", "restored"]
    restored = told[1]
    assert isinstance(restored, Restored)
    assert restored.restore_s > 0
    assert (restored.step, restored.size_bytes, restored.created_at) == (2, size_bytes, found.created_at)


def test_the_manifest_keeps_how_long_it_took(tmp_path: Path) -> None:
    told = list[Event]()
    with CheckpointManager(tmp_path, {"m": Weights()}, on_event=told.append) as manager:
        checkpoint = manager.save(7).result()
    manifest = read_manifest(open_store(str(tmp_path)), Folder(7, 1))
    began = next(event for event in told if isinstance(event, SaveBegan))
    written = next(event for event in told if isinstance(event, ShardsWritten))
    (timing,) = manifest.timings
    assert timing.blocked_s == began.blocked_s
    assert began.blocked_s < timing.write_s <= written.write_s
    assert manifest.began_at is not None
    assert datetime.fromisoformat(manifest.began_at) <= checkpoint.created_at


def test_damage_and_a_failed_save_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, told = tmp_path / "run", list[Event]()
    with CheckpointManager(root, {"m": Weights()}) as manager:
        for step in (1, 2):
            manager.save(step)
    shard = next((root / "000000000002-i0001").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with CheckpointManager(root, {"m": Weights()}, on_event=told.append) as manager:
        manager.restore_latest()
    save = ["save_began", "shards_written", "committed"]
    assert kinds(told) == ["damaged", "claimed", "restored", *save]  # saved again as its own
    assert isinstance(told[0], Damaged)
    assert told[0].folder == "000000000002-i0001"
    assert "crc32c" in told[0].error

    told.clear()
    stores = wrap_store(monkeypatch, FaultyStore)
    manager = CheckpointManager(root, {"m": Weights()}, on_event=told.append, on_save_error="log")
    manager.restore_latest()
    stores[0].fail("put", StorageAccessError("planted"), key="shard")
    manager.save(3)
    manager.save(4).result()
    with pytest.raises(SaveFailedError):
        manager.close()
    failed = [event for event in told if isinstance(event, SaveFailed)]
    assert [(event.step, event.folder) for event in failed] == [(3, "000000000003-i0003")]
    assert failed[0].error.startswith("SaveFailedError: ")
    assert "planted" in failed[0].error
    assert [event.step for event in told if isinstance(event, Committed)] == [4]


def test_a_request_that_is_made_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told, real = list[Event](), MemoryFileSystem.pipe_file
    failures = iter([ConnectionResetError("planted")])

    def fails_once(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if "shard-" in path and (error := next(failures, None)) is not None:
            raise error
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fails_once)
    with CheckpointManager("memory://told/retries", {"m": Weights()}, on_event=told.append) as manager:
        manager.save(1)
    (retried,) = (event for event in told if isinstance(event, Retried))
    assert (retried.verb, retried.tries, retried.url) == ("put", 1, "memory://told/retries")
    assert "shard-00000" in retried.key
    assert "planted" in retried.error
    assert retried.wait_s > 0
    assert told[-1].name == "committed"


def test_a_hook_that_waits_holds_up_neither_training_nor_saves(tmp_path: Path) -> None:
    told, gate = list[Event](), threading.Event()

    def waits(event: Event) -> None:
        gate.wait(HANG_S)
        told.append(event)

    with CheckpointManager(tmp_path, {"m": Weights()}, on_event=waits) as manager:
        for step in (1, 2, 3):
            assert manager.save(step).result().step == step
        assert told == []
        gate.set()
    assert [event.step for event in told if isinstance(event, Committed)] == [1, 2, 3]  # all, before close returns


def test_a_hook_that_raises_is_logged_and_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = list[Event]()

    class Broken:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, event: Event) -> None:
            raise SystemExit("planted")  # what would end a thread without a word

    with CheckpointManager(tmp_path, {"m": Weights()}, on_event=[Broken(), told.append]) as manager:
        manager.save(1)
    assert kinds(told) == ["claimed", "save_began", "shards_written", "committed"]
    logged = [record for record in caplog.records if "planted" in record.getMessage()]
    assert len(logged) == 4
    assert [record.exc_info is not None and bool(record.exc_info) for record in logged] == [True, False, False, False]


def test_what_a_hook_says_of_a_url_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "PLAN" + "TED"  # a stack shows the lines of this file

    def post(event: Event) -> None:
        try:
            raise ConnectionError(f"no answer from https://me:{secret}@host/hook")
        except ConnectionError as error:
            raise RuntimeError(f"https://host/hook?token={secret} refused") from error

    with CheckpointManager(tmp_path, {"m": Weights()}, on_event=functools.partial(post)) as manager:
        manager.save(1)
    assert "RuntimeError: https://host/hook?*** refused" in caplog.text
    assert "in post" in caplog.text  # the stack is there
    assert secret not in caplog.text
    assert not any(secret in repr(record.exc_info) for record in caplog.records)


def test_one_that_hangs_is_left_behind_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "CLOSING_S", 0.2)
    monkeypatch.setattr(hooks, "MAX_WAITING", 2)
    gate = threading.Event()
    try:
        with CheckpointManager(tmp_path, {"m": Weights()}, on_event=lambda event: gate.wait(HANG_S)) as manager:
            for step in (1, 2, 3):
                manager.save(step).result()
        assert "too slow or hangs" in caplog.text
        assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(tmp_path)] == [1, 2, 3]
    finally:
        gate.set()


def test_a_script_that_closes_nothing_still_tells_all(tmp_path: Path) -> None:
    program = f"""
import ckptflow, tensorflow as tf
manager = ckptflow.CheckpointManager({str(tmp_path)!r}, tf.Variable(tf.zeros([1000])),
                                     on_event=lambda event: print(event.name, flush=True))
manager.save(1)
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["claimed", "save_began", "shards_written", "committed"]


def test_each_event_is_a_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ckptflow.events")
    with CheckpointManager(tmp_path, {"m": Weights()}) as manager:  # without a hook
        manager.save(5, metrics={"val loss": 0.25})
    records = [record for record in caplog.records if record.name == "ckptflow.events"]
    assert [record.getMessage().split()[0] for record in records] == [
        "claimed",
        "save_began",
        "shards_written",
        "committed",
    ]
    line = records[-1].getMessage()
    assert " step=5 folder=000000000005-i0001 " in line
    assert line.endswith('metrics={"val loss": 0.25}')
    fields = records[-1].__dict__["ckptflow_event"]
    assert json.loads(json.dumps(fields)) == fields
    assert (fields["event"], fields["step"], fields["metrics"]) == ("committed", 5, {"val loss": 0.25})


@given(st.text(), st.text())
def test_a_line_is_one_line_whatever_is_in_it(key: str, error: str) -> None:
    event = Retried(verb="put", key=key, tries=1, wait_s=0.5, error=error, at=datetime(2026, 1, 2, tzinfo=UTC))
    line = as_line(event)
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    quoted = line.partition(" key=")[2].partition(" tries=")[0]
    assert (json.loads(quoted) if quoted.startswith('"') else quoted) == key
    assert json.loads(json.dumps(as_fields(event)))["error"] == error


def test_nobody_listens_and_nothing_is_begun() -> None:
    quiet = Hooks([], 0)
    quiet.tell(Claimed(incarnation=1, reason="start"))
    assert quiet._thread is None
    quiet.close()


def test_what_cannot_be_called_is_refused(tmp_path: Path) -> None:
    for wrong in ("print", [print, None], 3):
        with pytest.raises(ValueError, match=r"on_event: .* cannot be called with an event"):
            CheckpointManager(tmp_path, {"m": Weights()}, on_event=wrong)  # type: ignore[arg-type]


def test_where_no_thread_can_be_started_an_event_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells it, as a save, must not fail by it."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    told: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        telling = Hooks([told.append], 0)
        telling.tell(Claimed(incarnation=1, reason="start"))
    telling.tell(Claimed(incarnation=2, reason="start"))
    telling.close()
    assert [event.incarnation for event in told if isinstance(event, Claimed)] == [1, 2]
