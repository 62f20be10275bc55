"""The number of streams: found by the throughput of rounds, on links of many kinds, in virtual time."""

from __future__ import annotations

import random
import statistics
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.transfer.streams import FIRST, Count, Round, Streams, decide

PIECE_BYTES = 8 * 2**20
MOST = 31
BACK_OFF_S = 0.4  # after a refusal, which is a part of a transfer's time


@dataclass(frozen=True)
class Link:
    """Bytes per second of one connection and of all together, seconds before the first byte, and what goes wrong."""

    connection: float
    whole: float = 10e9
    latency_s: float = 0.02
    jitter: float = 0.0
    refuses_above: int = 1000  # connections at once
    background: float = 0.0  # of requests that are refused whatever the number
    congested_above: int = 1000  # from there on, each further connection costs 5 %

    def seconds(self, streams: int) -> float:
        """For one piece, while so many are under way."""
        speed = min(self.connection, self.whole / streams) * 0.95 ** max(0, streams - self.congested_above)
        return self.latency_s + PIECE_BYTES / speed

    def throughput(self, streams: int) -> float:
        useful = min(streams, self.refuses_above)
        return useful * PIECE_BYTES / self.seconds(streams)

    def best(self) -> float:
        return max(self.throughput(streams) for streams in range(1, MOST + 1))

    def round(self, streams: int, chance: random.Random) -> Round:
        over = max(0, streams - self.refuses_above)
        refused = over + sum(chance.random() < self.background for _ in range(streams - over))
        served = max(1, streams - refused)
        busy_s = sum(self.seconds(streams) * chance.uniform(1 - self.jitter, 1 + self.jitter) for _ in range(served))
        return Round(streams, served * PIECE_BYTES, busy_s + refused * BACK_OFF_S, refused)


LINKS = {
    "S3, far away": Link(12e6, latency_s=0.1),
    "S3": Link(12e6),
    "S3, jitter": Link(12e6, jitter=0.3),
    "S3, 1 % refused": Link(12e6, background=0.01),
    "S3, 1 % refused, jitter": Link(12e6, background=0.01, jitter=0.3),
    "GCS": Link(40e6, latency_s=0.05),
    "1 Gbit/s": Link(40e6, whole=125e6),
    "1 Gbit/s, jitter": Link(40e6, whole=125e6, jitter=0.3),
    "10 Gbit/s": Link(80e6, whole=1.25e9),
    "a slow line": Link(12e6, whole=5e6),
    "one connection fills it": Link(1e9, whole=1e9),
    "two fill it": Link(500e6, whole=1e9, latency_s=0.001),
    "a satellite": Link(3e6, whole=50e6, latency_s=0.6),
    "throttled to one": Link(12e6, refuses_above=1),
    "throttled to two": Link(12e6, refuses_above=2),
    "throttled to five": Link(12e6, refuses_above=5),
    "throttled to twenty": Link(12e6, refuses_above=20),
    "congested above ten": Link(12e6, congested_above=10),
    "congested above twenty": Link(12e6, congested_above=20, jitter=0.1),
    "loopback": Link(2e9, whole=2e9, latency_s=0.0005),
}


def run(link: Link, rounds: int, seed: int = 0) -> list[Count]:
    chance = random.Random(seed)
    choices = [Count(FIRST)]
    for _ in range(rounds):
        choices.append(decide(choices[-1], link.round(choices[-1].streams, chance), MOST))
    return choices


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("seed", range(5))
def test_it_comes_within_a_fifth_of_the_best_and_stays(name: str, seed: int) -> None:
    link = LINKS[name]
    streams = [choice.streams for choice in run(link, 150, seed)]
    settled = streams[50:]
    reached = sum(map(link.throughput, settled)) / len(settled)
    assert reached >= 0.8 * link.best(), (name, streams)
    usual = statistics.median(settled)
    assert usual / 2 <= min(settled), (name, streams)
    assert max(settled) <= 2 * usual, (name, streams)


def test_the_second_round_has_all_that_the_budget_holds() -> None:
    assert [choice.streams for choice in run(LINKS["S3"], 3)] == [16, 31, 31, 31]


rounds = st.builds(
    Round,
    st.integers(1, 64),
    st.integers(0, 2**40),
    st.floats(0, 1e6, allow_nan=False),
    st.integers(0, 64),
)


@given(st.lists(rounds, max_size=60), st.integers(1, 64))
def test_it_is_never_below_one_nor_above_the_budget(seen: list[Round], most: int) -> None:
    choice = Count(min(FIRST, most))
    for each in seen:
        before = choice
        choice = decide(before, Round(before.streams, each.size_bytes, each.busy_s, each.refusals), most)
        assert 1 <= choice.streams <= most
        assert choice.streams <= 2 * before.streams


def test_no_more_are_under_way_than_the_number() -> None:
    streams = Streams(4)
    under_way, most = 0, 0
    lock = threading.Lock()
    barrier = threading.Barrier(12)

    def transfer() -> None:
        nonlocal under_way, most
        barrier.wait()
        for _ in range(50):
            with streams.transfer(1):
                with lock:
                    under_way += 1
                    most = max(most, under_way)
                with lock:
                    under_way -= 1

    threads = [threading.Thread(target=transfer) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 4
    assert under_way == 0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_storm_of_refusals_lowers_it_at_once_and_an_error_gives_its_turn_back() -> None:
    streams = Streams(31, clock=Clock())
    for _ in range(FIRST):
        streams.refused()
    assert streams.count == 11
    for _ in range(11):
        streams.refused()
    assert streams.count == 7
    for _ in range(100):
        with pytest.raises(OSError, match="gone"), streams.transfer(1):
            raise OSError("gone")


def test_a_number_that_was_given_stays() -> None:
    streams = Streams(31, fixed=5, clock=Clock())
    for _ in range(100):
        streams.refused()
    assert streams.count == 5
    assert Streams(3, fixed=8).count == 3
