"""The simulator of large jobs: what it asks of the storage is what the formulas say, and a seed makes one job."""

from __future__ import annotations

import random
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from benchmarks.scale.job import Figures, Job, SaveFigures, simulate
from benchmarks.scale.model import MIB, Storage, send
from benchmarks.scale.plots import plot
from benchmarks.scale.tables import goal_table, price_table, save_table, start_table

QUIET = Storage(refused=0.0)
JOB = Job(workers=10, size_bytes=2 * 10**8, tensors=60, shard_bytes=4 * MIB, storage=QUIET)


@pytest.fixture(scope="module")
def found() -> Figures:
    return simulate(JOB)


def test_a_save_asks_for_what_the_formula_says(found: Figures) -> None:
    """Shards + workers + 1 writes, a list for each look and one of the claims; each receipt is read once."""
    for save in (found.save, found.pruning_save):
        assert save.requests["put"] == save.shards + JOB.workers + 1
        assert save.requests["get"] - (JOB.workers - 1) in range(2, 2 + 9)  # claims; the last receipt, by its name
    assert found.save.requests["list"] == found.save.polls + 1
    assert found.save.prune_requests == {}
    assert found.pruning_save.prune_requests["delete"] >= 2


def test_a_start_asks_for_the_same_with_any_number_of_workers(found: Figures) -> None:
    one = simulate(replace(JOB, workers=1))
    assert found.start.requests["list"] == one.start.requests["list"]
    assert found.start.others == {"get": 1}


def test_a_seed_makes_one_job(found: Figures) -> None:
    def virtual(save: SaveFigures) -> SaveFigures:
        return replace(save, chief_cpu_s=0.0, prune_cpu_s=0.0)

    again = simulate(JOB)
    assert virtual(again.save) == virtual(found.save)
    assert virtual(again.pruning_save) == virtual(found.pruning_save)
    assert again.start.decided_s == found.start.decided_s
    assert simulate(replace(JOB, seed=2)).save.written_s != found.save.written_s


def test_of_many_workers_some_are_real_and_a_round_is_as_long(monkeypatch: pytest.MonkeyPatch, found: Figures) -> None:
    monkeypatch.setattr("benchmarks.scale.job.MOST_REAL", 5)
    some = simulate(replace(JOB, workers=40)).start
    monkeypatch.setattr("benchmarks.scale.job.MOST_REAL", 64)
    every = simulate(replace(JOB, workers=40)).start
    assert some.rounds == every.rounds
    assert some.message_bytes == pytest.approx(every.message_bytes, rel=0.001)  # ids that are drawn, packed
    assert some.decided_s == pytest.approx(every.decided_s, rel=0.2)


def test_what_is_refused_is_sent_again() -> None:
    storage = Storage(refused=0.3, slow=0.0)
    sent = send(storage, random.Random(0), [[MIB] * 50, [MIB] * 50])
    assert sent.requests - sent.refused == 100
    assert sent.refused > 10
    assert min(sent.ended_s) > max(send(replace(storage, refused=0.0), random.Random(0), [[MIB] * 50] * 2).ended_s)


def test_tables_and_plots(found: Figures) -> None:
    for table in (save_table([found]), start_table([found]), price_table([found]), goal_table(found)):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    image = ET.fromstring(plot("a < b", "s", {"one": [(1, 0.1), (10, 20)], "two": [(1, 0), (10, 20)]}))
    assert image.tag.endswith("svg")
