"""`ckptflow bench`: real rounds on real storages, nothing left behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ckptflow.bench import measure as measuring
from ckptflow.bench.folder import FOLDER_PREFIX, bench_folder, finished
from ckptflow.bench.grid import MIB
from ckptflow.bench.measure import measure
from ckptflow.bench.rounds import save_rate
from ckptflow.errors import StorageError
from ckptflow.storage.local import RawDisk
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import LatencyStore
from tests.cli.runner import Runner, run_alone
from tests.servers import Server
from tests.waiting import HANG_S, until

QUICK = ("--seconds", "2", "--size-mib", "64", "--concurrency", "1", "--concurrency", "2", "--shard-mib", "16")


def check_shape(found: Any, workers: int = 1) -> None:
    """What docs/cli.md says."""
    assert found["size_bytes"] == 64 * MIB
    assert set(found["latency_s"]) == {"create", "get", "list"}
    assert len(found["points"]) + len(found["not_measured"]) == 3
    assert found["points"][0]["is_default"]
    assert found["workers"] == workers
    for point in found["points"]:
        assert point["rounds"] >= 1
        for what in ("save", "restore"):
            rates = point[what]
            assert set(rates) == {
                "bytes_per_s",
                "interval",
                "raw_bytes_per_s",
                "share_of_raw",
                "streams",
                "slowest_ratio",
                "cpu_s_per_gib",
                "request_s",
            }
            assert 0 < rates["request_s"]["p50"] <= rates["request_s"]["p95"] <= rates["request_s"]["p99"]
            assert (rates["interval"] is None) == (point["rounds"] < 5)
            assert rates["streams"] >= 1
            assert rates["slowest_ratio"] >= 1
            assert point["is_default"] or rates["streams"] == point["concurrency"]
            assert rates["bytes_per_s"] > 0
            assert rates["raw_bytes_per_s"] > 0
            assert rates["share_of_raw"] > 0
            assert rates["cpu_s_per_gib"] > 0
    chosen = found["recommendation"]
    assert chosen["why"]
    assert chosen["beats_defaults"] != chosen["is_default"]
    assert (chosen["concurrency"] is None) == chosen["is_default"]
    assert (chosen["concurrency"], chosen["shard_bytes"], chosen["memory_budget_bytes"]) in [
        (point["concurrency"], point["shard_bytes"], point["memory_budget_bytes"]) for point in found["points"]
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--profile", "gpt-5"), "'gpt-5' is not one of"),
        (("--profile", "gpt-2", "--size-mib", "64"), "give one of them"),
        (("--workers", "0"), "--workers"),
        (("--concurrency", "129"), "less than or equal to 128"),  # more are never under way
    ],
)
def test_bad_input(runner: Runner, tmp_path: Path, given: tuple[str, ...], told: str) -> None:
    ran = runner("bench", str(tmp_path), *given)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())
    assert not list(tmp_path.iterdir())


def test_on_a_disk_beside_a_run_that_is_not_touched(runner: Runner, root: str) -> None:
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    ran = runner("bench", root, *QUICK, "--json")
    assert (ran.code, ran.err) == (0, "")
    check_shape(ran.json)
    assert ran.json["client"] in ("direct writes + fsync", "buffered writes + fsync")
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before
    assert not list(Path(root).glob(FOLDER_PREFIX + "*"))


def test_what_it_prints(runner: Runner, tmp_path: Path) -> None:
    ran = runner("bench", str(tmp_path / "new"), "--seconds", "1", "--profile", "resnet-50", "--concurrency", "1")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.index("This cannot show") < ran.out.index("defaults") < ran.out.index("To use:")
    assert "resnet-50: 26 M parameters, float32, SGD with momentum" in ran.out
    assert "208 MiB each time" in ran.out
    assert "A request of a restore, " in ran.out
    assert "NOT all are: give more --seconds" in ran.out
    assert ran.out.count("▶") == 2  # the line of what to use, and what it means
    assert "share" not in ran.out.replace(
        "share the storage", ""
    )  # beside two medians a median of ratios reads as wrong
    assert f'CheckpointManager({str(tmp_path / "new")!r}, {{"model": model}}' in ran.out
    assert not list(tmp_path.iterdir())  # the folder was not there before


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_on_an_object_store(seaweedfs: Server, client: str) -> None:
    bucket = f"bench-{client}"
    seaweedfs.make_bucket(bucket)
    options = json.dumps({**seaweedfs.storage_options, "client": client})
    script = "import sys; from ckptflow.cli import main\ntry: main()\nfinally: assert 'tensorflow' not in sys.modules"
    ran = run_alone(
        "bench", f"s3://{bucket}/some/where", *QUICK, "--json", script=script, CKPTFLOW_STORAGE_OPTIONS=options
    )
    assert ran.code == 0, ran.err
    check_shape(ran.json)
    assert ran.json["client"] == {"obstore": "obstore", "fsspec": "s3fs"}[client]
    assert seaweedfs.storage_options["secret"] not in ran.out + ran.err
    from tests.servers import s3_client

    assert s3_client(seaweedfs).list_objects_v2(Bucket=bucket).get("KeyCount") == 0


def test_a_bucket_that_is_not_there(seaweedfs: Server) -> None:
    ran = run_alone("bench", "s3://no-such-bucket", CKPTFLOW_STORAGE_OPTIONS=json.dumps(seaweedfs.storage_options))
    assert ran.code == 3
    assert "no such bucket" in ran.err
    assert "could not be removed" not in ran.err  # nothing was written
    assert "Traceback" not in ran.err


def test_a_folder_that_cannot_be_written(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    ran = runner("bench", str(tmp_path / "file"), *QUICK)
    assert ran.code == 3
    assert f"{tmp_path}/file is a file; a directory was expected" in ran.err


def has_ended(process: psutil.Process) -> bool:
    """Also where nobody has asked yet how."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("sent", "code", "workers"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)]
)
def test_ended_it_leaves_nothing(tmp_path: Path, sent: signal.Signals, code: int, workers: int) -> None:
    command = [
        sys.executable,
        "-c",
        "from ckptflow.cli import main; main()",
        "bench",
        str(tmp_path),
        "--seconds",
        "3600",
        "--workers",
        str(workers),
    ]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        in_a_round = f"{FOLDER_PREFIX}*/*/begin"  # of each worker
        until(lambda: process.poll() is not None or len(list(tmp_path.glob(in_a_round))) == workers, HANG_S)
        assert process.poll() is None, process.communicate()[1]
        children = psutil.Process(process.pid).children()
        assert len(children) == (workers if workers > 1 else 0)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=HANG_S)
        until(lambda: all(has_ended(child) for child in children), HANG_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not os.listdir(tmp_path)


def test_more_than_the_disk_has_room_for(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * MIB))
    ran = runner("bench", str(tmp_path / "a" / "b"), *QUICK)
    assert ran.code == 2
    assert "100 MiB are free, and a round writes 128 MiB" in ran.err
    assert not list(tmp_path.iterdir())
    ran = runner("bench", str(tmp_path), "--profile", "llama-3-8b", "--workers", "2")
    assert ran.code == 2
    assert "100 MiB are free, and a round writes 183," in ran.err
    assert not list(tmp_path.iterdir())
    ran = runner("bench", str(tmp_path / "a" / "b"), "--seconds", "1", "--json")  # its own choice fits
    assert ran.code == 0, ran.err
    assert ran.json["size_bytes"] <= 100 * MIB / 3
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounts a small file system")
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there in the middle of a round is not what was there before it."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(measuring, "free_bytes", lambda url: 10**12)
        one: Any = {"concurrencies": (1,), "shard_mib": (16,), "size_bytes": 64 * MIB}
        with pytest.raises(StorageError, match="No space left"):
            measure(str(place), {}, seconds=2, memory_bytes=512 * MIB, **one)
        assert not list(place.iterdir())
        ran = run_alone("bench", str(place), *QUICK[:2], "--size-mib", "32", "--json")
        assert ran.code == 0, ran.err
        assert ran.json["client"] in ("buffered writes + fsync", "direct writes + fsync")
        assert not list(place.iterdir())
        ran = run_alone(
            "bench", str(place), "--seconds", "1", "--json"
        )  # nor does its own choice, and what it tries first
        assert ran.code == 0, ran.err
        assert not list(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_cannot_be_removed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    def fail(store: Store) -> None:
        store.put("a", memoryview(b"1"))
        raise StorageError("the real reason")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(StorageError, match="the real reason"), bench_folder(str(tmp_path), {}) as folder:
            fail(folder.store)
    (left,) = tmp_path.iterdir()
    assert f"{left} could not be removed, delete it" in caplog.text


def test_a_second_interrupt_waits_until_all_is_removed(tmp_path: Path) -> None:
    """The first one is on its way out while a shard is still being written; it is never there after the removal."""
    script = """
import os, signal, threading, time
from ckptflow.cli import main
from ckptflow.storage.local import LocalStore
put = LocalStore.put
def slow(store, key, data):
    if key.endswith(".safetensors") and "-i0001/" in key:
        for handler in ("first", "second"):
            os.kill(os.getpid(), signal.SIGINT)
            while getattr(signal.getsignal(signal.SIGINT), "__name__", "") == handler:
                time.sleep(0.01)  # two that come before one is handled are one
        time.sleep(0.3)
    put(store, key, data)
LocalStore.put = slow
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
    ran = run_alone("bench", str(tmp_path), *QUICK[:4], "--concurrency", "1", "--shard-mib", "64", script=script)
    assert ran.code == 130, ran.err
    assert "another Ctrl-C leaves it" in ran.err
    assert not os.listdir(tmp_path)


def test_a_removal_that_is_interrupted_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt), bench_folder(str(tmp_path), {}):
            pass
    (left,) = tmp_path.iterdir()
    assert f"{left} could not be removed, delete it: KeyboardInterrupt" in caplog.text


def test_what_an_interrupt_cuts_short_is_over_before_it_is_raised() -> None:
    """fsspec's requests go on in a thread of its own when the one that waits for them is interrupted."""
    is_over = False

    def request() -> None:
        nonlocal is_over
        time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)  # the main thread's, which waits by now
        time.sleep(0.2)
        is_over = True

    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs do not
    try:
        with pytest.raises(KeyboardInterrupt):
            finished(request)
    finally:
        signal.signal(signal.SIGINT, heeded)
    assert is_over


def test_a_save_too_small_for_a_setting_is_not_shown_as_its_figure(runner: Runner, tmp_path: Path) -> None:
    small = ("--seconds", "1", "--size-mib", "16", "--concurrency", "1", "--shard-mib", "128")
    ran = runner("bench", str(tmp_path), *small, "--shard-mib", "16", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["points"][0]["is_default"]  # whatever the size
    (left_out,) = [each for each in ran.json["not_measured"] if each["shard_bytes"] // MIB == 128]
    assert left_out["why"] == "a save of 16 MiB does not have so much under way"
    ran = runner("bench", str(tmp_path), *small, "--memory-mib", "257", "--json")  # less than the defaults take
    assert ran.code == 0, ran.err
    assert [each["memory_budget_bytes"] for each in ran.json["points"]] == [257 * MIB]


def test_more_than_the_machine_has_memory_for(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "free_memory_bytes", lambda: 100 * MIB)
    ran = runner("bench", str(tmp_path), *QUICK, "--shard-mib", "64", "--memory-mib", "100000", "--json")
    assert ran.code == 0, ran.err
    usual = ran.json["points"][0]  # what a manager does with that budget
    assert (usual["is_default"], usual["shard_bytes"], usual["memory_budget_bytes"]) == (True, 50 * MIB, 50 * MIB)
    assert {point["shard_bytes"] // MIB for point in ran.json["points"][1:]} <= {16}
    left_out = [each for each in ran.json["not_measured"] if each["shard_bytes"] // MIB != 16]  # not for want of time
    assert [each["concurrency"] for each in left_out] == [2, 1]
    assert {each["why"] for each in left_out} == {
        "half of this machine's free memory (50 MiB) does not hold its buffers"
    }
    ran = runner("bench", str(tmp_path), "--shard-mib", "64", "--memory-mib", "100000")
    assert ran.code == 2
    assert "half of this machine's free memory (50 MiB) holds none" in ran.err
    monkeypatch.setattr(measuring, "free_memory_bytes", lambda: 860 * MIB)  # workers are more than their buffers
    ran = runner("bench", str(tmp_path), *QUICK, "--workers", "2")
    assert ran.code == 2
    assert "(430 MiB), for 2 workers that take 192 MiB each without buffers, holds none" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_connection_that_the_raw_client_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement goes on, as it does when ours loses one; what no retry helps is raised in one line."""
    put, get = RawDisk.put, RawDisk.get
    lost: list[str] = []

    def lose(name: str) -> None:
        if name not in lost:
            lost.append(name)
            raise ConnectionResetError("the other end went away")

    def losing_put(client: RawDisk, key: str, data: memoryview) -> None:
        lose(f"put {key}")
        put(client, key, data)

    def losing_get(client: RawDisk, key: str, into: memoryview) -> None:
        lose(f"get {key}")
        get(client, key, into)

    monkeypatch.setattr(RawDisk, "put", losing_put)
    monkeypatch.setattr(RawDisk, "get", losing_get)
    one: Any = {"concurrencies": (1,), "shard_mib": (16,), "size_bytes": 16 * MIB}
    found = measure(str(tmp_path), {}, seconds=1, memory_bytes=512 * MIB, **one)
    assert len(lost) == 2 * found.points[0].rounds

    def refuse(client: RawDisk, key: str, data: memoryview) -> None:
        raise PermissionError("https://user:secret@host/bucket?signature=abc says no")

    monkeypatch.setattr(RawDisk, "put", refuse)
    with pytest.raises(StorageError, match=r"the raw client: .*raw-0: cannot write: .*says no") as raised:
        measure(str(tmp_path), {}, seconds=1, memory_bytes=512 * MIB, **one)
    assert "secret" not in str(raised.value)
    assert "signature=abc" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_slow_storage_is_measured_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller settings with few bytes; what would take longer than the time is named. Its speed and the time are
    made up: what a busy machine really gives decides nothing here."""
    ticks = itertools.count(step=4)
    monkeypatch.setattr(measuring, "save_rate", lambda store, enough_s, most_bytes: 33 * MIB)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    found = measure(str(tmp_path), {}, seconds=12, memory_bytes=1280 * MIB)
    assert found.size_bytes <= 64 * MIB
    assert len(found.points) > 1
    assert sum(point.rounds for point in found.points) == 3  # those that began after 0, 4 and 8 s
    assert "12 s are too short for it here" in {why for _, why in found.unmeasured}
    assert all(point.setting.under_way_bytes <= found.size_bytes for point in found.points)


def test_how_fast_it_is_takes_no_more_than_its_time_and_room(tmp_path: Path) -> None:
    class Slow(LatencyStore):
        written_bytes = 0

        def put(self, key: str, data: memoryview) -> None:
            self.written_bytes += len(data)
            time.sleep(0.2)
            super().put(key, data)

    with bench_folder(str(tmp_path), {}) as folder:
        for enough_s, most_mib, written_mib in ((0.1, 1000, 16), (1e6, 1000, 16 + 256), (1e6, 40, 16 + 32)):
            slow = Slow(folder.store, 0.0)
            assert 0 < save_rate(slow, enough_s, most_mib * MIB) / MIB < 16 * 16 / 0.2
            assert slow.written_bytes // MIB == written_mib


def test_memory_that_holds_nothing_to_try(runner: Runner, tmp_path: Path) -> None:
    ran = runner("bench", str(tmp_path), "--memory-mib", "64", "--shard-mib", "64")
    assert ran.code == 2
    assert "--memory-mib 64 holds none of the settings to be tried" in ran.err
    assert not list(tmp_path.iterdir())
