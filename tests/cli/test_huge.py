"""A checkpoint that says it is huge, with shards as long as it says: sparse files take no room on a disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import crc32c
import pytest

from tests.cli.runner import run_alone
from tests.roots import make_root

HUGE_BYTES = 40 * 2**30
MEMORY_BYTES = 4 * 2**30
LIMITED = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
from ckptflow.cli import main; main()
"""


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """Two sound checkpoints and, the newest, one of one tensor of one shard of 40 GiB."""
    root = tmp_path / "run"
    make_root(str(root), (10, 20, 30))
    (path,) = root.glob("*30-i0001/manifest.json")
    record: dict[str, Any] = json.loads(path.read_bytes())
    del record["crc32c"]
    shard = record["shards"][0]
    with (path.parent / shard["name"]).open("wb") as file:
        os.truncate(file.fileno(), HUGE_BYTES)
    shard["size_bytes"] = HUGE_BYTES
    piece = {"shard": 0, "offset": 64, "start": [0], "shape": [HUGE_BYTES - 64], "crc32c": 0}
    record |= {
        "shards": [shard],
        "tensors": [{"name": "t", "dtype": "int8", "shape": [HUGE_BYTES - 64], "slices": [piece]}],
    }
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    path.write_bytes(body + b',"crc32c":"%08x"}' % crc32c.crc32c(body))
    return root


@pytest.mark.parametrize("verb", ["copy", "diff", "export"])
def test_is_refused_in_words_where_memory_does_not_hold_it(huge: Path, verb: str, tmp_path: Path) -> None:
    args = {
        "copy": ["copy", str(huge), str(tmp_path / "copy")],
        "diff": ["diff", str(huge), "--step", "30", str(huge / "000000000030-i0001")],
        "export": ["export", str(huge), str(tmp_path / "weights.safetensors")],
    }[verb]
    ran = run_alone(*args, script=LIMITED)
    assert ran.code == 2, ran.err
    assert "memory than this process can have" in ran.err


def test_the_others_are_there(huge: Path) -> None:
    ran = run_alone("ls", str(huge), "--json", script=LIMITED)
    assert [row["step"] for row in ran.json["checkpoints"]] == [10, 20, 30]
    assert run_alone("verify", str(huge / "000000000020-i0001"), script=LIMITED).code == 0
    assert run_alone("copy", str(huge), str(huge.parent / "copy"), "--step", "20", script=LIMITED).code == 0


def test_a_shard_that_is_not_as_long_as_the_manifest_says_takes_no_memory(huge: Path, tmp_path: Path) -> None:
    (shard,) = huge.glob("*30-i0001/shard-*-0000-*")
    os.truncate(shard, 100)
    ran = run_alone("copy", str(huge), str(tmp_path / "copy"), script=LIMITED)
    assert ran.code == 1
    assert "has 100 bytes, the manifest says" in ran.err
