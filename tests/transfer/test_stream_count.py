"""The number of streams: found by the throughput of rounds, on links of many kinds, in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.transfer.stream_count import (
    CEILING_S,
    FAR_S,
    FIRST,
    LEAST_TRANSFERS,
    Count,
    Meter,
    Round,
    Transfer,
    decide,
    first_number,
)

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
        waves = -(-LEAST_TRANSFERS // streams)
        refused = waves * over + sum(chance.random() < self.background for _ in range(waves * (streams - over)))
        served = max(1, waves * streams - refused)
        busy_s = sum(self.seconds(streams) * chance.uniform(1 - self.jitter, 1 + self.jitter) for _ in range(served))
        busy_s += refused * BACK_OFF_S
        return Round(streams, served + refused, served * PIECE_BYTES, busy_s, busy_s / streams, refused)


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


def run(link: Link, rounds: int, seed: int = 0, first: int = FIRST) -> list[Count]:
    chance = random.Random(seed)
    choices = [Count(first)]
    for _ in range(rounds):
        choices.append(decide(choices[-1], link.round(choices[-1].streams, chance), MOST))
    return choices


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", [FIRST, MOST])
def test_it_comes_within_a_fifth_of_the_best_and_stays(name: str, seed: int, first: int) -> None:
    link = LINKS[name]
    streams = [choice.streams for choice in run(link, 150, seed, first)]
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
    st.integers(1, 64),
    st.integers(0, 2**40),
    st.floats(0, 1e6, allow_nan=False),
    st.floats(0, 1e3, allow_nan=False),
    st.integers(0, 64),
)


@given(st.lists(rounds, max_size=60), st.integers(1, 64))
def test_it_is_never_below_one_nor_above_the_budget(seen: list[Round], most: int) -> None:
    choice = Count(min(FIRST, most))
    for each in seen:
        before = choice
        found = Round(before.streams, each.answered, each.size_bytes, each.busy_s, each.elapsed_s, each.refusals)
        choice = decide(before, found, most)
        assert 1 <= choice.streams <= most
        assert choice.streams <= 2 * before.streams


@pytest.mark.parametrize("most", [1, 2, 3, 31])
def test_from_one_stream_it_rises_again_where_more_pay(most: int) -> None:
    choice = Count(1, base=1, is_doubling=False, ceiling=1, ceiling_s=CEILING_S)
    seen = set[int]()
    for _ in range(200):
        choice = decide(choice, LINKS["S3"].round(choice.streams, random.Random(0)), most)
        seen.add(choice.streams)
    assert max(seen) == most


def test_from_the_most_it_falls_again_where_fewer_give_more() -> None:
    choice = Count(MOST, base=MOST, base_bytes_per_s=1.0, is_doubling=False, tries_fewer=False)
    for _ in range(100):
        choice = decide(choice, LINKS["congested above ten"].round(choice.streams, random.Random(0)), MOST)
    assert choice.base < MOST


def test_a_round_with_refusals_is_no_time_for_more() -> None:
    """Also where they are too few to lower the number: who was not refused was quick."""
    now = Count(8, base=4, base_bytes_per_s=1e6)
    for refusals, streams in ((1, 16), (2, 4)):
        assert decide(now, Round(8, 8, 8 * PIECE_BYTES, 1.0, 1.0, refusals), 32).streams == streams


# ---- whole transfers, one beside the other, in virtual time


@dataclass
class Cloud:
    """A storage to which each connection has the same rate; between `from_s` and `until_s` something is wrong."""

    from_s: float
    until_s: float
    says_busy: bool = False  # else it says nothing
    serves: int = 0  # so many of those that ask at once, whichever, while something is wrong
    second_s: float = PIECE_BYTES / 12e6

    def is_wrong(self, now_s: float) -> bool:
        return self.from_s <= now_s < self.until_s


def transfers(cloud: Cloud, most: int, end_s: float) -> list[tuple[float, int]]:
    """A pipeline that always has more to transfer: the number of streams after each thing that happens."""
    meter = Meter(most, None, 0.0)
    order = itertools.count()
    events: list[tuple[float, int, str, Transfer]] = []
    chance = random.Random(0)
    found = [(0.0, meter.choice.streams)]

    def ask(transfer: Transfer, now_s: float) -> None:
        if not cloud.is_wrong(now_s) or chance.random() < cloud.serves / len(meter.under_way):
            heapq.heappush(events, (now_s + cloud.second_s, next(order), "ended", transfer))
        else:
            heapq.heappush(events, (now_s + 0.02, next(order), "refused", transfer))

    now_s = 0.0
    while now_s < end_s:
        while meter.has_room:
            transfer = Transfer()
            meter.begin(transfer, now_s)
            ask(transfer, now_s)
        now_s, _, what, transfer = heapq.heappop(events)
        if what == "ended" and cloud.is_wrong(now_s) and not cloud.serves:
            what = "refused"  # cut off
        if what == "ended":
            meter.end(transfer, now_s, PIECE_BYTES)
        elif what == "again":
            ask(transfer, now_s)
        else:
            if cloud.says_busy:
                meter.refused(transfer, now_s)
            heapq.heappush(events, (now_s + 1.0, next(order), "again", transfer))
        assert len(meter.under_way) <= most
        found.append((now_s, meter.choice.streams))
    return found


def between(found: list[tuple[float, int]], from_s: float, until_s: float) -> list[int]:
    return [streams for now_s, streams in found if from_s <= now_s < until_s]


def test_an_outage_without_an_answer_changes_nothing_for_long() -> None:
    found = transfers(Cloud(10, 40), 32, 120)
    assert min(between(found, 5, 120)) >= 12  # a probe of fewer may have been under way
    assert statistics.median(between(found, 60, 120)) == 32


def test_a_storm_of_refusals_costs_one_step_whatever_its_length() -> None:
    """What waits to be asked again is the same transfers: they are counted once."""
    for length_s in (2, 60):
        found = transfers(Cloud(10, 10 + length_s, says_busy=True), 32, 200)
        assert min(between(found, 5, 10 + length_s)) >= 15
        assert statistics.median(between(found, 10 + length_s + CEILING_S + 30, 200)) >= 24


@pytest.mark.parametrize("serves", [1, 2, 5])
def test_it_falls_to_what_a_storage_takes_and_rises_when_it_takes_more(serves: int) -> None:
    found = transfers(Cloud(10, 200, says_busy=True, serves=serves), 32, 400)
    assert statistics.median(between(found, 100, 200)) <= 2 * serves
    assert statistics.median(between(found, 350, 400)) >= 24


def test_a_refusal_of_a_round_before_is_none_of_this_one() -> None:
    meter = Meter(31, None, 0.0)
    old = [Transfer() for _ in range(FIRST)]
    for transfer in old:
        meter.begin(transfer, 0.0)
    for _ in range(20):
        for transfer in old:
            meter.refused(transfer, 1.0)
    assert meter.choice.streams == FIRST // 2
    for transfer in old:
        meter.end(transfer, 2.0, PIECE_BYTES)
        meter.end(transfer, 2.0, PIECE_BYTES)
    assert meter.choice.streams == FIRST // 2
    assert not meter.under_way


def test_after_a_pause_more_is_tried_at_once() -> None:
    """A save takes seconds; the next one comes minutes later, and does not begin with what a storm has left."""
    meter = Meter(31, None, 0.0)

    def transfer_all(now_s: float, *, is_refused: bool) -> None:
        batch = [Transfer() for _ in range(meter.choice.streams)]
        for transfer in batch:
            meter.begin(transfer, now_s)
        for transfer in batch:
            if is_refused:
                meter.refused(transfer, now_s + 0.1)
        for transfer in batch:
            meter.end(transfer, now_s + 1.0, PIECE_BYTES)

    transfer_all(0.0, is_refused=True)
    assert meter.choice.streams == FIRST // 2
    for number in range(4):
        transfer_all(300.0 + number, is_refused=False)
    assert meter.choice.streams >= FIRST


def test_a_transfer_that_is_refused_again_and_again_is_one() -> None:
    meter = Meter(31, None, 0.0)
    under_way = [Transfer() for _ in range(FIRST)]
    for transfer in under_way:
        meter.begin(transfer, 0.0)
    for _ in range(100):
        meter.refused(under_way[0], 1.0)
    assert meter.choice == Count(FIRST)


def test_two_transfers_are_no_round() -> None:
    meter = Meter(2, None, 0.0)
    for number in range(LEAST_TRANSFERS // 2):
        assert meter.choice.base == 0
        batch = [Transfer(), Transfer()]
        for transfer in batch:
            meter.begin(transfer, float(number))
        for transfer in batch:
            meter.end(transfer, number + 1.0, PIECE_BYTES)
    assert meter.choice.base == 2


def test_the_most_is_judged_though_nobody_waits_for_a_turn() -> None:
    """Where there are as many threads as streams, nobody ever waits."""
    meter = Meter(31, None, 0.0)
    for number in range(3):
        batch = [Transfer() for _ in range(meter.choice.streams)]
        assert all(meter.has_room for _ in batch)
        for transfer in batch:
            meter.begin(transfer, float(number))
        for transfer in batch:  # more under way give no more
            meter.end(transfer, number + len(batch) / FIRST, PIECE_BYTES)
    assert meter.choice.streams == FIRST


def test_a_round_of_fewer_than_may_be_says_nothing() -> None:
    meter = Meter(31, None, 0.0)
    for number in range(100):
        transfer = Transfer()
        meter.begin(transfer, float(number))
        meter.end(transfer, number + 0.5, PIECE_BYTES)
    assert meter.choice == Count(FIRST)


def test_where_the_storage_is_far_all_there_may_be_are_there_from_the_first_round_on() -> None:
    assert first_number(31, FIRST, None) == first_number(31, FIRST, FAR_S / 2) == FIRST
    assert first_number(31, FIRST, FAR_S) == 31
    assert first_number(3, FIRST, None) == 3
    meter = Meter(31, None, 0.0)
    meter.begin_with(31)
    assert meter.choice == Count(31)


def test_what_was_found_is_what_the_next_save_begins_with() -> None:
    """However far away the storage is; and so is a number that was given, or one that is being tried now."""
    under_way, decided, given = Meter(31, None, 0.0), Meter(31, None, 0.0), Meter(31, 5, 0.0)
    under_way.begin(Transfer(), 0.0)
    batch = [Transfer() for _ in range(FIRST)]
    for transfer in batch:
        decided.begin(transfer, 0.0)
    for transfer in batch:
        decided.refused(transfer, 0.1)
        decided.end(transfer, 1.0, PIECE_BYTES)
    for meter, expected in ((under_way, FIRST), (decided, FIRST // 2), (given, 5)):
        meter.begin_with(31)
        assert meter.choice.streams == expected


def test_a_number_that_was_given_stays() -> None:
    meter = Meter(31, 5, 0.0)
    for number in range(100):
        transfer = Transfer()
        meter.begin(transfer, float(number))
        meter.refused(transfer, number + 0.5)
        meter.end(transfer, number + 0.5, PIECE_BYTES)
    assert meter.choice.streams == 5
    assert Meter(3, 8, 0.0).choice.streams == 3
