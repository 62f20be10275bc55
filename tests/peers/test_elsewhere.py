"""A worker that waits in a round of another manager is named, and one that only came late is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptflow.errors import PeerError
from ckptflow.peers.post import Put, UnreachableError
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import Answer, Peer, Watch
from tests.peers.post import LocalPost
from tests.waiting import HANG_S

PEERS = [Peer(f"/job:worker/replica:0/task:{worker}", f"host{worker}:1234") for worker in range(3)]
OTHERS = {"first": "second", "second": "first/again"}  # by rounds, the next one of the other manager
ACCUSED = "waits in a call of another CheckpointManager"


class Hooked(LocalPost):
    """Calls `looks` before each look, and `puts` before each write."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: Callable[[str], object] = lambda key: None
        self.puts: Callable[[str], object] = lambda key: None

    def look(self, key: str, timeout_s: float) -> str | None:
        self.looks(key)
        return super().look(key, timeout_s)

    def put(self, key: str, text: str, timeout_s: float) -> Put:
        self.puts(key)
        return super().put(key, text, timeout_s)


def gather(post: LocalPost, worker: int, topic: str, elsewhere: list[str]) -> list[bytes] | str:
    """What the round brings this worker, or the error that it raises."""
    watch = Watch(PEERS, lambda peer, timeout_s: Answer.HERE, HANG_S)
    rounds = Rounds(post, worker, PEERS, watch, HANG_S)
    try:
        return rounds.gather(topic, b"%d" % worker, f"the {topic} save", limit_s=HANG_S, elsewhere=elsewhere)
    except PeerError as error:
        return str(error)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.peers.watch._SAY_AFTER_S", (0.5,))


def test_one_that_came_late_and_went_on_is_not_said_to_be_elsewhere() -> None:
    """While worker 2 looks who is missing, worker 1 comes; the round ends, and 0 and 1 begin the next one."""
    post = Hooked()
    is_looking, has_gone_on = threading.Event(), threading.Event()

    def looks(key: str) -> None:
        if key == "second/1":
            is_looking.set()
            assert has_gone_on.wait(HANG_S)

    def puts(key: str) -> None:
        if key == "second/1":
            has_gone_on.set()

    post.looks, post.puts = looks, puts

    def work(worker: int) -> list[object]:
        if worker == 1:
            assert is_looking.wait(HANG_S)
        return [gather(post, worker, topic, [OTHERS[topic]] if worker == 2 else []) for topic in OTHERS]

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, range(3))) == [[[b"0", b"1", b"2"]] * 2] * 3


def test_one_that_waits_elsewhere_is_named_there_and_here() -> None:
    post = LocalPost()
    with ThreadPoolExecutor(3) as threads:
        first = [threads.submit(gather, post, worker, "first", ["second"]) for worker in (0, 2)]
        second = threads.submit(gather, post, 1, "second", [])
        assert all(ACCUSED in str(each.result(HANG_S)) for each in (*first, second))


def test_a_service_that_goes_away_in_between_is_no_error_of_its_own() -> None:
    """What worker 2 has found cannot be written: it waits on, and is told how its round has ended."""
    post = Hooked()
    has_refused = threading.Event()
    post.texts["second/0"] = "0"

    def puts(key: str) -> None:
        if key == "first/all" and threading.current_thread() is not ending and not has_refused.is_set():
            has_refused.set()
            raise UnreachableError("connection reset")

    def end() -> None:
        assert has_refused.wait(HANG_S)
        Rounds(post, 1, PEERS, Watch(PEERS, lambda peer, timeout_s: Answer.HERE, HANG_S), HANG_S).give_up(
            "first", "worker 1 of 3 left"
        )

    ending = threading.Thread(target=end)
    post.puts = puts
    ending.start()
    assert gather(post, 2, "first", ["second"]) == "worker 1 of 3 left"
    ending.join()


def test_looking_elsewhere_has_one_limit_for_all_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place is asked for one worker, and none once the time for it is over."""
    monkeypatch.setattr("ckptflow.peers.rounds._LOOKS_S", 0.0)
    post = Hooked()
    looked: list[str] = []
    post.looks = looked.append
    has_said = threading.Event()
    monkeypatch.setattr("ckptflow.peers.rounds.logger.warning", lambda *args: has_said.set())

    def come() -> None:
        assert has_said.wait(HANG_S)
        for worker in (0, 1):
            post.texts[f"first/{worker}"] = str(worker)
        post.put("first/all", '{"problem": "over"}', 0.0)

    coming = threading.Thread(target=come)
    coming.start()
    assert gather(post, 2, "first", [f"other{number}" for number in range(8)]) == "over"
    coming.join()
    assert not [key for key in looked if key.startswith("other")]
