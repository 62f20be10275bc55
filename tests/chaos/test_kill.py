"""kill -9 of any worker at any moment, again and again: a short slice in `make test`, the long runs in `make chaos`."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptflow
from tests.chaos.conftest import Note
from tests.chaos.supervisor import MOMENTS, Supervisor, next_moment
from tests.servers import Server, seaweedfs

# Workers of each life, kills on local disk, kills on S3: 1,000 in all.
LONG = {"one": ([1], 350, 150), "two": ([2], 150, 100), "three": ([3], 75, 50), "changing": ([1, 2, 3], 100, 50)}
SHORT_KILLS = 4


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with seaweedfs() as server:
        server.make_bucket("chaos")
        yield server


def torment(supervisor: Supervisor, kills: int, world_sizes: list[int]) -> None:
    """A life that ends well, so that there is something to resume from; lives until so many were killed, each with as
    many workers as chance has it, and one of them had resumed; and one more that ends well."""
    supervisor.finish(1)
    while supervisor.killed.total() < kills or not supervisor.resumes:
        supervisor.kill_one(supervisor.rng.choice(world_sizes))
        assert supervisor.lives < 5 * kills, f"most lives end by themselves: {supervisor.killed}"
    supervisor.finish(supervisor.rng.choice(world_sizes))
    supervisor.store.close()
    print(f"{supervisor.lives} lives, {supervisor.resumes} resumed, killed: {dict(supervisor.killed)}")


def seeded() -> random.Random:
    """A new seed each time, printed, and taken from CKPTFLOW_CHAOS_SEED where that is set."""
    seed = int(os.environ.get("CKPTFLOW_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CKPTFLOW_CHAOS_SEED={seed}")
    return random.Random(seed)


@pytest.mark.parametrize("seed", range(20))
def test_so_many_kills_meet_every_moment(seed: int) -> None:
    """Chance does not decide whether a run has tried all of them."""
    killed, rng = Counter[str](), random.Random(seed)
    for _ in MOMENTS:
        killed[next_moment(killed, rng)] += 1
    assert set(killed) == set(MOMENTS)
    assert {next_moment(killed, rng) for _ in range(1000)} == set(MOMENTS)


def test_a_few_kills_on_local_disk(tmp_path: Path) -> None:
    torment(Supervisor(str(tmp_path / "run"), tmp_path, seeded()), SHORT_KILLS, [1, 1, 2])


def test_kills_around_a_copy(tmp_path: Path) -> None:
    """Of a shard that has not changed: what is there of it, or not, costs nothing that counts."""
    supervisor = Supervisor(str(tmp_path / "run"), tmp_path, seeded())
    supervisor.finish(1, saves=6)
    for moment in ("before a copy", "after a copy"):
        supervisor.kill_at(moment, 1)
    supervisor.finish(1)
    supervisor.store.close()
    assert supervisor.killed == {"before a copy": 1, "after a copy": 1}
    newest = ckptflow.list_checkpoints(tmp_path / "run")[-1]
    assert 0 < newest.copied_bytes < newest.size_bytes


def test_a_few_kills_on_s3(tmp_path: Path, s3: Server) -> None:
    torment(Supervisor("s3://chaos/short", tmp_path, seeded(), s3.storage_options), SHORT_KILLS, [1, 1, 2])


def note_kills(note: Note, where: str, supervisor: Supervisor) -> None:
    workers = f"{supervisor.lives} run attempts, {supervisor.resumes} resumed, 0 wrong values, 0 lost"
    note(f"kill -9, {where}", supervisor.killed.total(), workers)
    assert set(supervisor.killed) == set(MOMENTS), "not every moment was met"


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", LONG)
def test_many_kills_on_local_disk(tmp_path: Path, workers: str, note: Note) -> None:
    world_sizes, kills, _ = LONG[workers]
    supervisor = Supervisor(str(tmp_path / "run"), tmp_path, seeded())
    torment(supervisor, kills, world_sizes)
    note_kills(note, f"local disk, {workers}", supervisor)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", LONG)
def test_many_kills_on_s3(tmp_path: Path, s3: Server, workers: str, note: Note) -> None:
    world_sizes, _, kills = LONG[workers]
    supervisor = Supervisor(f"s3://chaos/long-{workers}", tmp_path, seeded(), s3.storage_options)
    torment(supervisor, kills, world_sizes)
    note_kills(note, f"S3, {workers}", supervisor)
