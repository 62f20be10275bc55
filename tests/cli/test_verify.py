"""`ckptflow verify`: every kind of damage is found, named and told by the exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.runner import Runner
from tests.roots import make_root


def shards(root: str, step: int) -> list[Path]:
    return sorted((Path(root) / f"{step:012d}-i0001").glob("shard-*"))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_whole(runner: Runner, root: str) -> None:
    ran = runner("verify", root)
    assert ran.code == 0
    assert ran.out.startswith("000000000300-i0001  ")
    assert ran.out.splitlines()[0].endswith("  intact")
    assert "every byte is as it was written" in ran.out
    assert ran.err == ""  # no bar where there is no terminal


def test_json_has_the_documented_members(runner: Runner, root: str) -> None:
    told = runner("verify", root, "--all", "--json").json
    assert set(told) == {"url", "ok", "doubt", "sample", "checkpoints"}
    assert told["ok"] is True
    assert [row["step"] for row in told["checkpoints"]] == [100, 200, 300]
    members = {"folder", "url", "step", "incarnation", "size_bytes", "state", "problems"}
    members |= {"read_bytes", "shards", "read_shards"}
    assert told["sample"] is None
    assert all(set(row) == members and row["state"] == "whole" for row in told["checkpoints"])


def test_one_flipped_bit_anywhere_is_found(runner: Runner, root: str) -> None:
    for step, position in ((100, -1), (200, 20), (300, 2000)):  # data, header, data
        flip(shards(root, step)[0], position)
    ran = runner("verify", root, "--all", "--json")
    assert ran.code == 1
    assert not ran.json["ok"]
    for row in ran.json["checkpoints"]:
        assert row["state"] == "damaged"
        assert all(problem.startswith(shards(root, row["step"])[0].name) for problem in row["problems"])
    first = ran.json["checkpoints"][0]["problems"]
    assert any("the slice of 'model/" in problem and "has crc32c" in problem for problem in first)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 100), "has 100 bytes, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "the manifest says"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "has crc32c"),
    ],
)
def test_what_is_wrong_is_said(runner: Runner, root: str, damage: object, words: str) -> None:
    assert callable(damage)
    damage(shards(root, 300)[1])
    ran = runner("verify", root)
    assert ran.code == 1
    assert shards(root, 100)[1].name in ran.out
    assert words in ran.out
    assert "1 of 1 damaged" in ran.out
    assert runner("verify", root, "--step", "200").code == 0


def test_a_truncated_manifest_is_damage(runner: Runner, root: str) -> None:
    """Also where `show` would take the one before: what is asked for is the newest."""
    os.truncate(Path(root) / "000000000300-i0001" / "manifest.json", 200)
    ran = runner("verify", root)
    assert ran.code == 1
    assert "  manifest.json: its bytes do not match the checksum" in ran.out
    assert runner("verify", root, "--all", "--json").json["checkpoints"][2]["state"] == "damaged"
    assert runner("verify", f"{root}/000000000300-i0001").code == 1


def test_a_checkpoints_folder(runner: Runner, root: str) -> None:
    flip(shards(root, 200)[0], -1)
    assert runner("verify", f"{root}/000000000200-i0001").code == 1
    assert runner("verify", f"{root}/000000000100-i0001").code == 0
    assert runner("verify", f"{root}/000000000100-i0001", "--all").code == 2
    assert runner("verify", f"{root}/000000000100-i0001", "--step", "1").code == 2


def test_nothing_to_verify_is_not_well(runner: Runner, root: str, tmp_path: Path) -> None:
    assert runner("verify", str(tmp_path)).code == 1
    ran = runner("verify", root, "--step", "150")
    assert (ran.code, ran.out) == (1, "")
    assert "no checkpoint of step 150" in ran.err
    (Path(root) / "000000000300-i0001" / "manifest.json").unlink()
    assert runner("verify", f"{root}/000000000300-i0001").code == 1


def test_what_is_pruned_meanwhile_is_gone_not_damaged(
    runner: Runner, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptflow.storage.local import LocalStore

    manifest = Path(root) / "000000000200-i0001" / "manifest.json"
    get = LocalStore.get

    def prune_first(self: LocalStore, key: str, into: memoryview, start: int = 0) -> int:
        if key.startswith("000000000100") and manifest.exists():
            manifest.unlink()
            shards(root, 200)[0].unlink()
        return get(self, key, into, start)

    monkeypatch.setattr(LocalStore, "get", prune_first)
    ran = runner("verify", root, "--all", "--json")
    assert ran.code == 0
    assert [row["state"] for row in ran.json["checkpoints"]] == ["whole", "gone", "whole"]


def test_a_checkpoint_larger_than_its_buffers(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptflow.transfer import streams

    make_root(str(tmp_path), (1,))
    monkeypatch.setattr(streams, "READING_BYTES", 4 * 4096)
    assert runner("verify", str(tmp_path)).code == 0
    flip(shards(str(tmp_path), 1)[0], 70_000)
    assert runner("verify", str(tmp_path)).code == 1
