"""`ckptflow verify --sample`: what was drawn is read, what was not is not said to be sound; and amounts in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.cli.amounts import percentage, read_part, read_rate, read_size
from ckptflow.cli.verify import Sample
from ckptflow.commit.catalog import read_manifest
from ckptflow.format.layout import Folder
from ckptflow.storage.opening import open_store
from ckptflow.testing import CountingStore
from tests.cli.runner import Runner
from tests.roots import SHARD_BYTES, make_root

SHARDS = 40


@pytest.fixture
def many(tmp_path: Path) -> str:
    """A root with two checkpoints of many shards."""
    arrays = {"large": np.arange(SHARDS * SHARD_BYTES // 4, dtype=np.float32)}
    make_root(root := str(tmp_path / "run"), (1, 2), arrays=arrays)
    return root


def drawn(root: str, step: int, seed: int, part: float = 0.05) -> list[Path]:
    store = open_store(root)
    manifest = read_manifest(store, Folder(step, 1))
    store.close()
    return [Path(root, manifest.folder, manifest.shards[n].name) for n in Sample(part, seed).shards(manifest)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_sample_is_read_and_the_rest_is_not_called_sound(runner: Runner, many: str) -> None:
    ran = runner("verify", many, "--all", "--sample", "5%", "--seed", "7")
    assert (ran.code, ran.err) == (0, "")
    *rows, total, again = ran.out.splitlines()
    assert len(rows) == 2
    assert all("  sampled: " in row and " shards read, " in row for row in rows)
    assert "no damage there; " in total
    assert " were not read" in total
    assert again == "The same sample again: --sample 5% --seed 7"
    for word in ("intact", "every byte", "sound"):
        assert word not in ran.out


def test_json_says_what_was_read(runner: Runner, many: str) -> None:
    told = runner("verify", many, "--sample", "5%", "--seed", "7", "--json").json
    assert (told["ok"], told["sample"]) == (None, {"part": 0.05, "seed": 7})
    (row,) = told["checkpoints"]
    files = drawn(many, 2, 7)
    assert (row["state"], row["read_shards"]) == ("sampled", len(files))
    assert row["shards"] > 10 * row["read_shards"]
    assert row["read_bytes"] == sum(path.stat().st_size for path in files) >= 0.05 * row["size_bytes"]


def test_no_other_shard_is_read(runner: Runner, many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptflow.storage import opening

    opened: list[CountingStore] = []

    def counted(url: str, options: dict[str, object]) -> CountingStore:
        opened.append(CountingStore(open_store(url, options)))
        return opened[-1]

    monkeypatch.setattr(opening, "open_store", counted)
    assert runner("verify", many, "--sample", "5%", "--seed", "3").code == 0
    (store,) = opened
    read = {key for key in store.keys("get") if "/shard-" in key}
    assert read == {str(path.relative_to(many)) for path in drawn(many, 2, 3)}


def test_damage_is_found_in_what_was_drawn(runner: Runner, many: str) -> None:
    flip(drawn(many, 2, 7)[0])
    ran = runner("verify", many, "--sample", "5%", "--seed", "7", "--json")
    assert (ran.code, ran.json["ok"], ran.json["checkpoints"][0]["state"]) == (1, False, "damaged")
    assert "1 of 1 damaged" in runner("verify", many, "--sample", "5%", "--seed", "7").out
    other = next(seed for seed in range(1_000) if drawn(many, 2, 7)[0] not in drawn(many, 2, seed))
    assert runner("verify", many, "--sample", "5%", "--seed", str(other)).code == 0


def test_what_is_missing_is_found_without_being_drawn(runner: Runner, many: str) -> None:
    chosen = drawn(many, 2, 7)
    other, another, *_ = (path for path in sorted(Path(many, str(Folder(2, 1))).glob("shard-*")) if path not in chosen)
    other.unlink()
    another.write_bytes(b"short")
    ran = runner("verify", many, "--sample", "5%", "--seed", "7", "--json")
    assert ran.code == 1
    assert [problem.partition(": ")[2][:10] for problem in ran.json["checkpoints"][0]["problems"]] == [
        "is missing",
        "has 5 byte",
    ]


@pytest.mark.parametrize("part", ["100%", "1TB"])
def test_a_sample_of_all_is_all(runner: Runner, many: str, part: str) -> None:
    told = runner("verify", many, "--sample", part, "--json").json
    assert (told["ok"], told["checkpoints"][0]["state"]) == (True, "whole")


def test_a_size_is_divided_among_the_checkpoints(runner: Runner, many: str) -> None:
    told = runner("verify", many, "--all", "--sample", f"{10 * SHARD_BYTES}B", "--json").json
    for row in told["checkpoints"]:
        assert 4 * SHARD_BYTES < row["read_bytes"] < 7 * SHARD_BYTES


@pytest.mark.parametrize("part", ["7.3%", "0.1%", f"{7 * SHARD_BYTES + 13}B"])
def test_what_is_said_to_draw_the_sample_again_does(runner: Runner, many: str, part: str) -> None:
    first = runner("verify", many, "--all", "--sample", part)
    again = first.out.splitlines()[-1].removeprefix("The same sample again: ").split()
    told = runner("verify", many, "--all", *again, "--json").json
    assert told == runner("verify", many, "--all", "--sample", part, "--seed", again[-1], "--json").json


@given(st.floats(0, 1, exclude_min=True, allow_subnormal=False))
def test_a_percentage_is_exact(part: float) -> None:
    assert read_part(percentage(part), "-x") == part


def test_another_run_draws_another_sample(many: str) -> None:
    samples = {tuple(drawn(many, 2, seed)) for seed in range(20)}
    assert len(samples) > 5
    assert drawn(many, 2, 1) == drawn(many, 2, 1)
    assert {path.name for path in drawn(many, 1, 1)} != {path.name for path in drawn(many, 2, 1)}


@pytest.mark.parametrize("args", ["--sample 0%", "--sample 101%", "--sample five", "--sample 0", "--seed 1"])
def test_what_is_no_sample_is_refused(runner: Runner, many: str, args: str) -> None:
    ran = runner("verify", many, *args.split())
    assert (ran.code, ran.out) == (2, "")
    assert "--sample" in ran.err


def test_amounts() -> None:
    sizes = {"1": 1, "100MB": 10**8, "1.5GiB": 3 * 2**29, "2 kB": 2000, "1g": 10**9, "3TiB": 3 * 2**40, "7B": 7}
    assert {text: read_size(text, "-x") for text in sizes} == sizes
    assert read_rate("100MB/s", "-x") == read_rate("100MB", "-x") == 10**8
    assert (read_part("5%", "-x"), read_part("0.5 %", "-x"), read_part("5MB", "-x")) == (0.05, 0.005, 5 * 10**6)
    for text in (
        "",
        "0B",
        "-1",
        "1e9",
        "inf",
        "nan",
        "MB",
        "1PB",
        "9" * 40 + "B",
        "9" * 400 + "B",
        "100Mb",
        "7b",
        "1Gib",
        "1 M B",
        "0.1B",
    ):
        with pytest.raises(ValueError, match="-x"):
            read_size(text, "-x")
        with pytest.raises(ValueError, match="bytes per second"):
            read_rate(text, "-x")
    for read, likely in ((read_rate, "100MB/s"), (read_part, "100%")):
        with pytest.raises(ValueError, match=f"-x '100' has no unit: write {likely}, or 100B"):
            read("100", "-x")
    with pytest.raises(ValueError, match="a lower-case b would be bits"):
        read_rate("100Mb/s", "-x")
