"""kill -9 of any worker at any moment, again and again: a short slice in `make test`, the long runs in `make chaos`."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.supervisor import Supervisor
from tests.servers import Server, seaweedfs

SHORT_LIVES, LONG_LIVES = 4, 60


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with seaweedfs() as server:
        server.make_bucket("chaos")
        yield server


def torment(supervisor: Supervisor, lives: int, world_sizes: list[int]) -> None:
    """`lives` lives that are killed, each with as many workers as chance has it, and one that is not."""
    for _ in range(lives):
        supervisor.kill_one(supervisor.rng.choice(world_sizes))
    supervisor.finish(supervisor.rng.choice(world_sizes))
    print(f"{supervisor.lives} lives, {supervisor.resumes} resumed, killed: {supervisor.killed}")
    assert supervisor.resumes > 0, "no life ever resumed: nothing was tried"


def seeded() -> random.Random:
    """A new seed each time, printed, and taken from CKPTFLOW_CHAOS_SEED where that is set."""
    seed = int(os.environ.get("CKPTFLOW_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CKPTFLOW_CHAOS_SEED={seed}")
    return random.Random(seed)


def test_a_few_kills_on_local_disk(tmp_path: Path) -> None:
    torment(Supervisor(str(tmp_path / "run"), tmp_path, seeded()), SHORT_LIVES, [2, 3])


def test_a_few_kills_on_s3(tmp_path: Path, s3: Server) -> None:
    torment(Supervisor("s3://chaos/short", tmp_path, seeded(), s3.storage_options), SHORT_LIVES, [2, 2, 3])


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_sizes", [[2], [3], [1, 2, 3]], ids=["two", "three", "changing"])
def test_many_kills_on_local_disk(tmp_path: Path, world_sizes: list[int]) -> None:
    torment(Supervisor(str(tmp_path / "run"), tmp_path, seeded()), LONG_LIVES, world_sizes)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_sizes", [[2], [3], [1, 2, 3]], ids=["two", "three", "changing"])
def test_many_kills_on_s3(tmp_path: Path, s3: Server, world_sizes: list[int]) -> None:
    url = f"s3://chaos/long-{'-'.join(map(str, world_sizes))}"
    torment(Supervisor(url, tmp_path, seeded(), s3.storage_options), LONG_LIVES, world_sizes)
