"""`ckptflow bench --workers`: several processes that save and restore together, and what becomes of their errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckptflow.bench.crew import WorkerTeam
from ckptflow.bench.grid import HEADER_ROOM_BYTES, MIB, Setting
from ckptflow.bench.rounds import BenchRounds
from ckptflow.errors import PeerError, StorageError
from ckptflow.storage.local import RawDisk
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.wrappers import LatencyStore
from ckptflow.transfer.stream_count import FAR_S
from tests.cli.runner import Runner
from tests.cli.test_bench import QUICK, check_shape
from tests.servers import BUCKET, Server


def test_workers_save_and_restore_together(runner: Runner, tmp_path: Path) -> None:
    ran = runner("bench", str(tmp_path), *QUICK, "--workers", "2", "--json")
    assert (ran.code, ran.err) == (0, "")
    check_shape(ran.json, workers=2)
    assert not list(tmp_path.iterdir())


def test_what_a_worker_raises_is_raised(tmp_path: Path) -> None:
    """As what it is, once all have answered; and one that ends by itself is named."""
    url = str(tmp_path / "none" / "of" / "it")
    setting = Setting(1, 16 * MIB)
    team = WorkerTeam(url, {}, 16 * MIB, 2)
    try:
        team.do("begin", setting)
        shutil.rmtree(tmp_path / "none")
        (tmp_path / "none").write_text("in the way")
        with pytest.raises(StorageError, match=r"worker 0: .*cannot write"):
            team.do("save", setting)
        for process in team.processes:
            process.kill()
        with pytest.raises(PeerError, match="worker 0 of the measurement ended"):
            team.do("end", setting)
    finally:
        team.kill()


def test_the_shards_are_those_of_a_manager(seaweedfs: Server) -> None:
    """Whatever is set, and from the first round on, in which nothing was asked of the storage before."""
    near = open_store(f"s3://{BUCKET}/bench-shards", seaweedfs.storage_options)
    store = RetryingStore(LatencyStore(near, FAR_S))
    rounds, setting = BenchRounds(store, 48 * MIB), Setting(4, 8 * MIB + HEADER_ROOM_BYTES)
    rounds.do("begin", setting)
    rounds.do("save", setting)
    shards = [entry for entry in near.list() if entry.key.endswith(".safetensors")]
    assert len(shards) == 8  # two times four; six would hold them
    rounds.do("end", setting)
    near.close()


def test_what_the_raw_client_sends_is_as_real_as_what_ours_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it sends before ours has: random bytes, in more objects than buffers, no two of which are alike."""
    put, sent = RawDisk.put, list[bytes]()

    def seen(client: RawDisk, key: str, data: memoryview) -> None:
        sent.append(bytes(data))
        put(client, key, data)

    monkeypatch.setattr(RawDisk, "put", seen)
    store = open_store(str(tmp_path))
    rounds, setting = BenchRounds(store, 64 * MIB), Setting(1, 16 * MIB + HEADER_ROOM_BYTES)
    for _ in range(2):
        for phase in ("begin", "raw save", "raw restore", "end"):
            rounds.do(phase, setting)
    assert len(sent) == 2 * 4
    assert len(set(sent)) == len(sent)
    assert all(data.count(0) < len(data) / 100 for data in sent)
    store.close()
