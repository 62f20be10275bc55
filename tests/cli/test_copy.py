"""`ckptflow copy`: between any two storages, verified, resumed, committed last, and a job goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptflow.commit.copying import copy_checkpoint
from ckptflow.errors import CheckpointGoneError, CorruptCheckpointError, StorageError
from ckptflow.format.layout import Folder
from ckptflow.reading import list_checkpoints, open_checkpoint
from ckptflow.storage.opening import open_store
from ckptflow.testing import CountingStore, FaultyStore, StoreWrapper
from tests.cli.runner import Runner, run_alone
from tests.roots import Life, make_root
from tests.servers import Server

NEWEST = Folder(300, 1)


def content(root: str) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def test_the_newest_or_all(runner: Runner, root: str, tmp_path: Path) -> None:
    place = str(tmp_path / "copy")
    ran = runner("copy", root, place, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert set(ran.json) == {"url", "destination", "checkpoints", "gone", "damaged", "unread", "doubt"}
    (one,) = ran.json["checkpoints"]
    assert set(one) == {"folder", "step", "size_bytes", "sent_bytes"}
    assert one["sent_bytes"] == one["size_bytes"] > 0
    assert [checkpoint.step for checkpoint in list_checkpoints(place)] == [300]
    ran = runner("copy", root, place, "--all", "--json")
    assert [(each["step"], each["sent_bytes"] > 0) for each in ran.json["checkpoints"]] == [
        (100, True),
        (200, True),
        (300, False),
    ]
    there, here = content(place), content(root)
    assert there == {key: here[key] for key in there}
    assert {key for key in here if "shard-" in key or "manifest" in key} == set(there)
    assert runner("verify", place, "--all").code == 0


def test_a_job_goes_on_from_the_copy(runner: Runner, root: str, tmp_path: Path) -> None:
    place = str(tmp_path / "copy")
    assert runner("copy", root, place, "--all").code == 0
    life = Life(open_store(place))
    assert life.start.restored is not None
    assert life.start.restored.checkpoint.step == 300
    assert life.held.number == 2
    life.save(400)
    assert [checkpoint.step for checkpoint in list_checkpoints(place)] == [100, 200, 300, 400]
    ran = runner("copy", root, place)  # it is this job's root now
    assert ran.code == 2
    assert "a job has started here" in ran.err


def test_from_a_disk_to_s3_and_back(seaweedfs: Server, root: str, tmp_path: Path) -> None:
    seaweedfs.make_bucket("copies")
    options = json.dumps(seaweedfs.storage_options)
    script = "import sys; from ckptflow.cli import main\ntry: main()\nfinally: assert 'tensorflow' not in sys.modules"
    there = run_alone("copy", root, "s3://copies/run", "--all", "--destination-options", options, script=script)
    assert there.code == 0, there.err
    back = run_alone("copy", "s3://copies/run", str(tmp_path / "back"), "--all", CKPTFLOW_STORAGE_OPTIONS=options)
    assert back.code == 0, back.err
    here = content(root)
    assert content(str(tmp_path / "back")) == {key: here[key] for key in here if "shard-" in key or "manifest" in key}


def test_one_that_was_cut_off_is_gone_on_with(root: str, tmp_path: Path) -> None:
    source = open_store(root)
    target = FaultyStore(CountingStore(open_store(str(tmp_path / "copy"))))
    last = max(path.name for path in Path(root, str(NEWEST)).glob("shard-*"))
    target.fail("put", StorageError("the network is gone"), key=last)
    with pytest.raises(StorageError, match="the network is gone"):
        copy_checkpoint(source, target, NEWEST, lambda count: None)
    assert list_checkpoints(str(tmp_path / "copy")) == []  # nothing counts yet
    counting = target.store
    assert isinstance(counting, CountingStore)
    there = set(counting.keys("put"))
    counting.calls.clear()
    copied = copy_checkpoint(source, target, NEWEST, lambda count: None)
    assert 0 < copied.sent_bytes < copied.size_bytes
    assert not there & set(counting.keys("put"))
    assert counting.calls[-1] == ("create", NEWEST.manifest_key)
    assert [checkpoint.step for checkpoint in list_checkpoints(str(tmp_path / "copy"))] == [300]


def test_a_shard_that_lies_there_wrong_is_sent_anew(root: str, tmp_path: Path) -> None:
    source, target = open_store(root), open_store(str(tmp_path / "copy"))
    (first, *_) = sorted(Path(root, str(NEWEST)).glob("shard-*"))
    target.put(NEWEST.key(first.name), memoryview(bytes(first.stat().st_size)))
    copied = copy_checkpoint(source, target, NEWEST, lambda count: None)
    assert copied.sent_bytes == copied.size_bytes
    with open_checkpoint(str(tmp_path / "copy")) as opened:
        assert opened.verify() == []


def test_what_is_damaged_is_not_copied(runner: Runner, root: str, tmp_path: Path) -> None:
    (shard, *_) = sorted(Path(root, str(NEWEST)).glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    ran = runner("copy", root, str(tmp_path / "copy"))
    assert ran.code == 1
    assert "copy one that is not damaged" in ran.err
    assert list_checkpoints(str(tmp_path / "copy")) == []


def test_one_that_is_damaged_keeps_no_other_from_being_copied(runner: Runner, root: str, tmp_path: Path) -> None:
    (shard, *_) = sorted(Path(root, str(Folder(100, 1))).glob("shard-*"))
    shard.write_bytes(bytes(shard.stat().st_size))
    Path(root, Folder(200, 1).manifest_key).write_bytes(b"{}")
    ran = runner("copy", root, str(tmp_path / "copy"), "--all", "--json")
    assert ran.code == 1
    assert [each["step"] for each in ran.json["checkpoints"]] == [300]
    assert [each["folder"] for each in ran.json["damaged"]] == [str(Folder(100, 1)), str(Folder(200, 1))]
    assert shard.name in ran.json["damaged"][0]["problem"]
    assert [checkpoint.step for checkpoint in list_checkpoints(str(tmp_path / "copy"))] == [300]
    ran = runner("copy", root, str(tmp_path / "copy"), "--all")
    assert ran.code == 1
    assert f"{Folder(100, 1)}  not copied: {shard.name}" in ran.out


def test_a_destination_that_keeps_other_bytes_is_not_trusted(root: str, tmp_path: Path) -> None:
    class Forgetful(CountingStore):
        def put(self, key: str, data: memoryview) -> None:
            super().put(key, memoryview(bytes(len(data))))

    target = Forgetful(open_store(str(tmp_path / "copy")))
    with pytest.raises(StorageError, match="right after it was written"):
        copy_checkpoint(open_store(root), target, NEWEST, lambda count: None)
    assert list_checkpoints(str(tmp_path / "copy")) == []


def test_another_run_is_in_the_way(runner: Runner, root: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_root(str(other), (300,))
    copied = tmp_path / "copy"
    assert runner("copy", str(other), str(copied)).code == 0
    ran = runner("copy", root, str(copied))
    assert ran.code == 2
    assert "another run's checkpoints are here" in ran.err


@pytest.mark.parametrize("inside", ["", "/copies"])
def test_a_root_is_not_copied_into_itself(runner: Runner, root: str, inside: str) -> None:
    before = content(root)
    ran = runner("copy", root, root + inside)
    assert ran.code == 2
    assert "copy into a root of its own" in ran.err
    assert content(root) == before


@pytest.mark.parametrize("inside", ["", "/copies"])
def test_one_url_at_two_endpoints_is_two_places(
    runner: Runner, moto: Server, seaweedfs: Server, root: str, inside: str
) -> None:
    here, there = ["--storage-options", json.dumps(moto.storage_options)], json.dumps(seaweedfs.storage_options)
    bucket = f"two-places-{len(inside)}"
    for server in (moto, seaweedfs):
        server.make_bucket(bucket)
    url, target = f"s3://{bucket}/run", f"s3://{bucket}/run{inside}"
    assert runner("copy", root, url, "--all", "--destination-options", here[1]).code == 0
    slower = json.dumps({**moto.storage_options, "stall_timeout_s": 60})  # another limit is no other place
    ran = runner("copy", url, target, "--all", *here, "--destination-options", slower)
    assert ran.code == 2
    assert "copy into a root of its own" in ran.err
    ran = runner("copy", url, target, "--all", *here, "--destination-options", there)
    assert (ran.code, ran.err) == (0, "")
    ran = runner("ls", target, "--storage-options", there, "--json")
    assert [row["step"] for row in ran.json["checkpoints"]] == [100, 200, 300]


def test_a_copy_onto_itself_by_another_name_changes_nothing(
    runner: Runner, seaweedfs: Server, root: str, tmp_path: Path
) -> None:
    """One server reached by two names: what is there is neither replaced nor taken for another's."""
    seaweedfs.make_bucket("two-names")
    options = json.dumps(seaweedfs.storage_options)
    other = options.replace("127.0.0.1", "localhost")
    assert other != options
    assert runner("copy", root, "s3://two-names/run", "--all", "--destination-options", options).code == 0
    both = ["--storage-options", options, "--destination-options", other]
    ran = runner("copy", "s3://two-names/run", "s3://two-names/run", "--all", *both, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert [each["sent_bytes"] for each in ran.json["checkpoints"]] == [0, 0, 0]
    assert runner("copy", "s3://two-names/run", str(tmp_path / "back"), "--all", *both[:2]).code == 0
    here, back = content(root), content(str(tmp_path / "back"))
    assert back == {key: here[key] for key in back}


def test_what_goes_meanwhile_is_gone(root: str, tmp_path: Path) -> None:
    class Pruned(StoreWrapper):
        """Its checkpoint goes when the first shard is asked for, manifest first."""

        def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
            if verb == "get" and "shard-" in key:
                self.store.delete([entry.key for entry in self.store.list(f"{NEWEST}/")])
            return call()

    target = open_store(str(tmp_path / "copy"))
    with pytest.raises(CheckpointGoneError, match="pruned while it was copied"):
        copy_checkpoint(Pruned(open_store(root)), target, NEWEST, lambda count: None)
    with pytest.raises(CheckpointGoneError, match="pin what must stay"):
        copy_checkpoint(open_store(root), target, NEWEST, lambda count: None)
    assert list_checkpoints(str(tmp_path / "copy")) == []


def test_a_missing_shard_is_damage(root: str, tmp_path: Path) -> None:
    (shard, *_) = sorted(Path(root, str(NEWEST)).glob("shard-*"))
    shard.unlink()
    with pytest.raises(CorruptCheckpointError, match="copy one that is not damaged"):
        copy_checkpoint(open_store(root), open_store(str(tmp_path / "copy")), NEWEST, lambda count: None)


def test_limits(runner: Runner, root: str, tmp_path: Path) -> None:
    """What they do is tested on a clock of its own, in tests/transfer."""
    ran = runner("copy", root, f"{tmp_path}/copy", "--all", "--concurrency", "2", "--bandwidth", "1TB/s")
    assert (ran.code, ran.err) == (0, "")
    assert runner("verify", f"{tmp_path}/copy", "--all").code == 0


@pytest.mark.parametrize("args", ["--bandwidth fast", "--bandwidth 0", "--concurrency 0", "--concurrency 1000"])
def test_what_is_no_limit_is_refused(runner: Runner, root: str, tmp_path: Path, args: str) -> None:
    ran = runner("copy", root, f"{tmp_path}/copy", *args.split())
    assert (ran.code, ran.out) == (2, "")
    assert args.split()[0] in ran.err
    assert not (tmp_path / "copy").exists()
