"""Rounds of messages among threads: who does not come is named on all, and who shows progress is waited for."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptflow.errors import PeerError
from ckptflow.peers.post import Put
from ckptflow.peers.progress import CALLS, STORAGE, Signs
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import Answer, Peer, Watch, say_at
from tests.peers.post import LocalPost
from tests.waiting import HANG_S, until

COUNT = 3
PEERS = [Peer(f"/job:worker/replica:0/task:{worker}", f"host{worker}:1234") for worker in range(COUNT)]
LIMIT_S = 1.0
FASTER = 20


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of asking are fractions of one here; `Job.watch` counts as fast."""
    monkeypatch.setattr("ckptflow.peers.rounds.ASK_EVERY_S", 2.0 / FASTER)
    monkeypatch.setattr("ckptflow.peers.rounds.ENDED_AFTER_S", 6.0 / FASTER)


class Job:
    """Workers that are threads, and what each of their processes answers."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.post = LocalPost()
        self.limit_s = limit_s
        self.answers = dict.fromkeys(range(COUNT), Answer.HERE)
        self.rounds = [Rounds(self.post, worker, PEERS, self.watch(), limit_s) for worker in range(COUNT)]

    def watch(self) -> Watch:
        def ask(peer: Peer, timeout_s: float) -> Answer:
            return self.answers[PEERS.index(peer)]

        return Watch(PEERS, ask, self.limit_s, lambda: FASTER * time.monotonic())

    def gather(self, topic: str, *workers: int, late: Mapping[int, Callable[[], object]] | None = None) -> list[object]:
        """What these workers get, or raise; those of `late` first do something."""

        def run(worker: int) -> object:
            if late and worker in late:
                late[worker]()
            try:
                return self.rounds[worker].gather(
                    topic, b"%d" % worker, "save(step=5)", limit_s=self.limit_s, hint=f", within {self.limit_s:g} s"
                )
            except PeerError as error:
                return error

        with ThreadPoolExecutor(COUNT) as threads:
            return list(threads.map(run, workers))


def test_all_get_all_in_order_round_after_round() -> None:
    job = Job(limit_s=HANG_S)
    for number in range(20):
        assert job.gather(f"t/{number}", 0, 1, 2) == [[b"0", b"1", b"2"]] * COUNT
        job.rounds[0].forget(f"t/{number}")
    assert job.post.texts == {}


@pytest.mark.parametrize("missing", range(COUNT))
def test_who_does_not_come_is_named_on_all_that_wait(missing: int) -> None:
    present = [worker for worker in range(COUNT) if worker != missing]
    for error in Job().gather("t", *present):
        assert isinstance(error, PeerError)
        assert f"worker {missing} (host{missing}:1234) of 3 has not reached save(step=5)" in str(error)
        assert str(error).endswith(f", within {LIMIT_S:g} s")
        assert not any(f"host{worker}" in str(error) for worker in present)


def test_who_comes_when_the_others_have_given_up_is_told() -> None:
    job = Job()
    job.gather("t", 1, 2)
    (error,) = job.gather("t", 0)
    assert isinstance(error, PeerError)
    assert "worker 0 (host0:1234) of 3 has not reached" in str(error)
    job = Job()
    job.gather("t", 0, 1)
    (error,) = job.gather("t", 2)
    assert isinstance(error, PeerError)
    assert "worker 2 (host2:1234) of 3 has not reached" in str(error)


@pytest.mark.parametrize("answer", [Answer.ENDED, Answer.SILENT])
def test_who_has_ended_is_not_waited_for(answer: Answer) -> None:
    job = Job(limit_s=HANG_S)
    job.answers[2] = answer
    for error in job.gather("t", 0, 1):
        assert isinstance(error, PeerError)
        assert f"worker 2 (host2:1234) of 3 {answer.value}, in save(step=5)" in str(error)


def test_one_that_has_ended_after_its_message_is_not_missed() -> None:
    job = Job(limit_s=HANG_S)
    job.answers[2] = Answer.ENDED
    late = {0: lambda: time.sleep(0.05)}
    job.post.put("t/2", "2", 1.0)
    assert job.gather("t", 0, 1, late=late) == [[b"0", b"1", b"2"]] * 2


def test_who_shows_progress_is_waited_for() -> None:
    job = Job()

    def busy() -> None:
        for _ in range(30):
            job.rounds[1].show_progress(CALLS, "its storage")
            time.sleep(LIMIT_S / 10)

    assert job.gather("t", 0, 1, 2, late={1: busy}) == [[b"0", b"1", b"2"]] * COUNT


def test_progress_before_the_wait_does_not_count() -> None:
    job = Job()
    job.rounds[1].show_progress(CALLS, "its storage")
    for error in job.gather("t", 0, 2):
        assert isinstance(error, PeerError)
        assert "worker 1 (host1:1234) of 3 has not reached" in str(error)
        assert "busy" not in str(error)  # that was before


def test_whose_storage_shows_no_progress_is_found() -> None:
    job = Job()
    signs = job.rounds[0].storage_signs(time.monotonic())
    found: list[int] = []
    over = threading.Event()

    def write() -> None:
        while not over.wait(LIMIT_S / 10):
            job.rounds[1].show_progress(STORAGE, "")

    with ThreadPoolExecutor(1) as threads:
        threads.submit(write)
        while not found:
            found = signs.find_idle([1, 2])
            time.sleep(0.01)
        over.set()
    assert found == [2]


@pytest.mark.parametrize("missing", range(COUNT))
def test_replies_that_take_their_time_hide_nobody(missing: int) -> None:
    """Who is there is found, however long it takes to be told so: and who is not is named, and nobody else."""
    job = Job(limit_s=1.0)
    job.post.reply_s = 0.04
    for error in job.gather("t", *(worker for worker in range(COUNT) if worker != missing)):
        assert f"worker {missing} (host{missing}:1234) of 3 has not reached save(step=5)" in str(error)


def test_marks_are_seen_through_a_slow_network() -> None:
    job = Job(limit_s=1.0)
    job.post.reply_s = 0.04

    def busy() -> None:
        for _ in range(20):
            job.rounds[1].show_progress(CALLS, "its storage")
            time.sleep(0.1)

    assert job.gather("t", 0, 1, 2, late={1: busy}) == [[b"0", b"1", b"2"]] * COUNT


def test_who_is_held_up_by_one_that_has_stopped_is_named_with_it() -> None:
    """Worker 2 has sent its message and stopped, and so worker 0 does not get out of the step that they share."""
    job = Job(limit_s=3.0)
    job.answers[2] = Answer.SILENT
    job.post.put("t/2", "2", 1.0)
    (error,) = job.gather("t", 1)
    assert "worker 0 (host0:1234) of 3 has not reached save(step=5)" in str(error)
    assert "worker 2 (host2:1234) of 3 does not answer" in str(error)


class TestARoundEndsTheSameWayForAll:
    """Whoever gives up while the others do not: there is one end, and the first to write it decides."""

    def test_who_gives_up_too_late_goes_on(self) -> None:
        job = Job()

        class Deaf(LocalPost):
            """Gives worker 1 what it waits for only when it has given up."""

            def get(self, key: str, timeout_s: float) -> str | None:
                time.sleep(min(timeout_s, 0.05))
                return None

        deaf = Deaf()
        deaf.texts = job.post.texts
        job.rounds[1] = Rounds(deaf, 1, PEERS, job.watch(), LIMIT_S)
        assert job.gather("t", 0, 1, 2) == [[b"0", b"1", b"2"]] * COUNT

    @pytest.mark.parametrize("second", [Put.WRITTEN, Put.EXISTED, Put.UNKNOWN])
    def test_worker_0_goes_on_if_what_it_published_was_written_late(self, second: Put) -> None:
        class Late(LocalPost):
            """Says of an end that it may come later, and it comes."""

            def put(self, key: str, text: str, timeout_s: float) -> Put:
                is_first = key not in self.texts
                put = super().put(key, text, timeout_s)
                return put if key != "t/all" else Put.UNKNOWN if is_first else second

        job, late = Job(), Late()
        job.rounds = [Rounds(late, worker, PEERS, job.watch(), HANG_S) for worker in range(COUNT)]
        assert job.gather("t", 0, 1, 2) == [[b"0", b"1", b"2"]] * COUNT

    def test_what_one_gave_up_for_ends_the_others(self) -> None:
        job = Job(limit_s=HANG_S)
        job.post.put("t/all", '{"problem": "worker 1 lost worker 2"}', 1.0)
        assert [str(error) for error in job.gather("t", 0, 1, 2)] == ["worker 1 lost worker 2"] * COUNT

    def test_worker_0_learns_of_it_while_it_waits(self) -> None:
        job = Job(limit_s=HANG_S)
        job.answers[2] = Answer.ENDED
        job.rounds[0] = Rounds(job.post, 0, PEERS, Watch(PEERS, lambda *_: Answer.HERE, HANG_S), HANG_S)
        for error in job.gather("t", 0, 1):
            assert "worker 2 (host2:1234) of 3 has ended" in str(error)


def test_what_a_late_one_is_busy_with_is_said() -> None:
    job = Job(limit_s=1.0)
    over = threading.Event()

    def busy() -> None:
        for _ in range(6):
            job.rounds[1].show_progress(CALLS, "restore: read the values")
            time.sleep(0.15)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(busy)
        errors = job.gather("t", 0, 2)
        over.set()
    for error in errors:
        assert "(worker 1 is busy with restore: read the values)" in str(error)


@pytest.mark.parametrize("who", range(COUNT))
def test_one_that_leaves_by_another_error_tells_the_others(who: int) -> None:
    class Interrupted(LocalPost):
        def put(self, key: str, text: str, timeout_s: float) -> Put:
            if key == f"t/{who}":
                raise KeyboardInterrupt
            return super().put(key, text, timeout_s)

    job = Job(limit_s=HANG_S)
    post = Interrupted()
    post.texts, job.rounds[who] = job.post.texts, Rounds(post, who, PEERS, job.watch(), HANG_S)
    with pytest.raises(KeyboardInterrupt):
        job.gather("t", who)
    others = [worker for worker in range(COUNT) if worker != who]
    assert {str(error) for error in job.gather("t", *others)} == {
        f"worker {who} of 3 left save(step=5) by KeyboardInterrupt"
    }


def test_worker_0_parts_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.peers.rounds._PART_S", HANG_S)
    job = Job()
    parted: list[int] = []

    def part(worker: int) -> None:
        time.sleep(0.1 * worker)
        if worker:
            parted.append(worker)  # before: what it leaves there is what worker 0 waits for
        job.rounds[worker].part("t")
        if not worker:
            parted.append(worker)

    with ThreadPoolExecutor(COUNT) as threads:
        list(threads.map(part, range(COUNT)))
    assert parted[-1] == 0
    assert job.post.texts == {}


def test_looks_for_signs_stay_seldom_when_the_limit_is_over() -> None:
    """Four within the limit, and no more often after it: each may leave a read behind in TensorFlow."""

    class AtOnce(LocalPost):
        def look(self, key: str, timeout_s: float) -> str | None:
            return self.texts.get(key)

    post = AtOnce()
    signs = Signs(post, CALLS, 0.0, 10.0, 1.25, COUNT)
    looks: list[float] = []
    for tenth in range(1000):
        if signs.is_due(tenth / 10):
            signs.look([1], tenth / 10)
            looks.append(tenth / 10)
    assert looks[0] < 1
    assert sum(look <= 10 for look in looks) <= 6
    assert any(look == 10 for look in looks)
    assert len(looks) <= 6 + 90 / 2


def test_a_limit_below_the_time_between_signs_is_kept() -> None:
    """As that of the first exchange may be: signs come once a minute here."""
    job = Job(limit_s=3600.0)
    with pytest.raises(PeerError, match=r"have not reached save\(step=5\), where worker 0 has waited for \d+ s"):
        job.rounds[0].gather("t", b"0", "save(step=5)", limit_s=0.5)


def test_a_first_sign_that_comes_during_the_wait_counts() -> None:
    job = Job(limit_s=3.0)

    def busy() -> None:
        time.sleep(1.5)
        job.rounds[1].show_progress(CALLS, "its storage")
        time.sleep(2.0)

    assert job.gather("t", 0, 1, 2, late={1: busy}) == [[b"0", b"1", b"2"]] * COUNT


def test_of_very_many_workers_only_worker_0_looks_for_all() -> None:
    many = [Peer(f"/job:worker/replica:0/task:{worker}", f"host{worker}:1") for worker in range(1000)]
    looked: set[str] = set()

    class Noting(LocalPost):
        def look(self, key: str, timeout_s: float) -> str | None:
            looked.add(key)
            return self.texts.get(key)  # at once: a thousand that are not there would take half a minute

    post = Noting()
    rounds = [Rounds(post, worker, many, Watch(many, lambda *_: Answer.HERE, 1.0), 1.0) for worker in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(rounds[1].gather, "t", b"1", "save(step=5)", limit_s=0.5)
        with pytest.raises(PeerError, match=r"worker 0 \(host0:1\) of 1000 has not reached"):
            one.result(HANG_S)
        assert {key for key in looked if key.startswith("t/")} <= {"t/0", "t/1", "t/all"}
    with pytest.raises(PeerError, match="worker 0"):
        rounds[0].gather("t", b"0", "save(step=5)", limit_s=0.5)
    with pytest.raises(PeerError, match=r"workers 1 .* 8 \(host8:1\) and 991 more of 1000 have not reached"):
        rounds[0].gather("u", b"0", "save(step=5)", limit_s=0.5)


def test_a_worker_that_tensorflow_names_is_named() -> None:
    """An error of the service is not always one of the process that it runs in."""
    job = Job(limit_s=HANG_S)
    job.post.is_refusing = "these tasks are unhealthy: /job:worker/replica:0/task:2"
    (error,) = job.gather("t", 1)
    assert "worker 2 (host2:1234) of 3 cannot be reached, in save(step=5)" in str(error)
    assert "host0" not in str(error)


@pytest.mark.parametrize("how", ["is_silent", "is_refusing"])
def test_worker_0_whose_process_is_away_is_named(how: str) -> None:
    """Without it nothing can be sent or read, from before the round on."""
    job = Job(limit_s=20.0)
    setattr(job.post, how, "refused")
    job.answers[0] = Answer.SILENT if how == "is_silent" else Answer.ENDED
    for error in job.gather("t", 1, 2):
        assert isinstance(error, PeerError)
        assert "worker 0 (host0:1234) of 3" in str(error)


def test_a_message_that_does_not_decode_is_named_on_all() -> None:
    job = Job(limit_s=HANG_S)
    job.post.put("t/1", "{", 1.0)
    for error in job.gather("t", 0, 2):
        assert isinstance(error, PeerError)
        assert "worker 1's message in save(step=5) cannot be read" in str(error)


@pytest.mark.parametrize("runs", ["[]", "[[1, 2]]", "[[1, 0], [1, 3]]", "[[1, 4], [1, -1]]", "[[1, 9000000000]]"])
def test_an_end_that_is_not_one_message_of_each_is_refused(runs: str) -> None:
    job = Job(limit_s=HANG_S)
    job.post.put("t/all", f'{{"runs": {runs}}}', 1.0)
    (error,) = job.gather("t", 1)
    assert isinstance(error, PeerError)
    assert "does not hold one message of each worker" in str(error)


def test_what_is_missing_is_said_again_at_growing_intervals() -> None:
    assert list(itertools.islice(say_at(), 7)) == [15.0, 60.0, 300.0, 1200.0, 3600.0, 7200.0, 10800.0]


def test_a_warning_says_who_is_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("ckptflow.peers.watch._SAY_AFTER_S", (0.05,))
    job = Job(limit_s=HANG_S)
    assert (
        job.gather("t", 0, 1, 2, late={2: lambda: until(lambda: "where worker 0" in caplog.text, HANG_S)})
        == [[b"0", b"1", b"2"]] * COUNT
    )
    said = [record.message for record in caplog.records]
    assert any("worker 2 (host2:1234) of 3 has not reached save(step=5), where worker 0" in text for text in said), said
