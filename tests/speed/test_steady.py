"""A job that saves for days: nothing of it grows, on a disk and on a real S3 server with either client."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.processes import run_python
from tests.servers import Server

_PROGRAM = "from tests.speed.steady import run; run()"
# Of Python's free lists and of caches that fill once, in all; a folder's name kept by each of 159 saves is 25 KiB.
_OUR_BYTES = 16 * 2**10


def measure(url: str, *, saves: int = 200, restores: int = 30, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """In a forked process: the objects of the libraries that it has loaded are not looked through at each look."""
    env = {"URL": url, "SAVES": str(saves), "RESTORES": str(restores), "STORAGE_OPTIONS": json.dumps(options or {})}
    done = run_python("-c", _PROGRAM, env=env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def nothing_grows(found: dict[str, Any], slack_mib: float = math.inf, kinds: str = "", connections: int = 0) -> None:
    """`slack_mib`: far below one copy of the state (0.2 MiB) for each call, above what malloc and the trace move by.
    `connections`: of a client that opens one more where more requests than before happen to meet."""
    assert found["threads"] <= 0, found
    assert found["tasks"] <= 0, found
    assert found["descriptors"] <= connections, found
    assert found["resident_mib"] < slack_mib, found
    assert not [kind for kind in found["objects"] if kind.startswith(kinds)], found  # more by one for a fourth call


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measure(str(tmp_path_factory.mktemp("steady") / "root"))


def test_200_saves_on_a_disk(on_disk: dict[str, Any]) -> None:
    nothing_grows(on_disk["saves"], slack_mib=8)
    assert on_disk["saves"]["our_bytes"] < _OUR_BYTES, on_disk["saves"]


def test_30_restores_from_a_disk(on_disk: dict[str, Any]) -> None:
    nothing_grows(on_disk["restores"], slack_mib=4)
    assert on_disk["restores"]["our_bytes"] < _OUR_BYTES, on_disk["restores"]


@pytest.mark.parametrize("client", ["fsspec", pytest.param("obstore", marks=pytest.mark.chaos)])
def test_s3(seaweedfs: Server, client: str) -> None:
    """Shorter, and by our own objects: clients fill caches of their own, and each new one reads what its
    library knows of S3 into memory: of those that restore, the process's memory is not asked for."""
    found = measure(
        f"s3://ckptflow-tests/steady-{client}",
        saves=30,
        restores=6,
        options={**seaweedfs.storage_options, "client": client},
    )
    nothing_grows(found["saves"], slack_mib=16, kinds="ckptflow.", connections=8)
    nothing_grows(found["restores"], kinds="ckptflow.", connections=4)
