"""`ckptflow export`, `ckptflow import`, and `ckptflow show` on an export."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import ckptflow
from ckptflow.cli import programs
from tests.cli.runner import Runner, run_alone


def test_there_and_back(runner: Runner, root: str, tmp_path: Path) -> None:
    file, again = str(tmp_path / "m.safetensors"), str(tmp_path / "again")
    ran = runner("export", root, file, "--step", "200")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{file}: safetensors of step 200, {root}/000000000200-i0001\n"
    ran = runner("import", file, again, "--step", "5")
    assert ran.code == 0
    assert ran.out == f"{again}/000000000005-i0001: step 5, from {file} (safetensors)\n"
    with ckptflow.open_checkpoint(root, 200) as old, ckptflow.open_checkpoint(again) as new:
        assert list(old) == list(new)
        for name in old:
            assert np.array_equal(old[name], new[name])


def test_json(runner: Runner, root: str, tmp_path: Path) -> None:
    file, again = str(tmp_path / "m.safetensors"), str(tmp_path / "again")
    exported = runner("export", root, file, "--json").json
    assert exported == {
        "url": file,
        "format": "safetensors",
        "checkpoint_url": f"{root}/000000000300-i0001",
        "step": 300,
        "left_out": [],
    }
    shown = runner("show", file, "--json").json
    assert shown["url"] == file
    about = shown["exported_from"]
    assert (about["run_url"], about["folder"], about["step"]) == (root, "000000000300-i0001", 300)
    assert set(about) == {"run_url", "run_id", "folder", "step", "incarnation", "manifest_sha256", "format", "ckptflow",
                          "exported_at"}  # fmt: skip
    imported = runner("import", file, again, "--json").json
    assert imported["url"] == f"{again}/000000000000-i0001"
    assert (imported["step"], imported["source"], imported["format"]) == (0, file, "safetensors")


def test_show_tells_of_an_export(runner: Runner, root: str, tmp_path: Path) -> None:
    file = str(tmp_path / "m.safetensors")
    runner("export", root, file)
    ran = runner("show", file)
    assert ran.code == 0
    assert f"{root}/000000000300-i0001" in ran.out
    assert "sha256 " in ran.out
    Path(file).write_bytes(b"nothing of ours")
    assert runner("show", file).code == 1


def test_what_is_refused(runner: Runner, root: str, tmp_path: Path) -> None:
    file = str(tmp_path / "m.safetensors")
    assert runner("export", root, file).code == 0
    ran = runner("export", root, file)
    assert ran.code == 2
    assert "--overwrite" in ran.err
    assert runner("export", root, file, "--overwrite").code == 0
    ran = runner("export", root, str(tmp_path / "m.keras"))
    assert ran.code == 2
    assert "tf-checkpoint, safetensors" in ran.err
    ran = runner("import", file, root)
    assert ran.code == 2
    assert "begins a run" in ran.err
    ran = runner("import", str(tmp_path / "nothing.keras"), str(tmp_path / "again"))
    assert ran.code == 1
    assert "nothing.keras" in ran.err
    ran = runner("import", file, str(tmp_path / "again"), "--model", "no_colon")
    assert (ran.code, "MODULE:NAME" in ran.err) == (2, True)
    ran = runner("import", file, str(tmp_path / "again"), "--rename", "old", "--model", "os:getcwd")
    assert (ran.code, "OLD=NEW" in ran.err) == (2, True)
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "run"]


PROGRAM = """
import tensorflow as tf


class Net(tf.Module):
    def __init__(self):
        self.embedding = tf.Variable(tf.zeros([500, 64]))
        self.head = tf.Variable(tf.zeros([3]))


def build():
    return {"model": Net()}
"""


def test_a_warm_start(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    assert run_alone("export", root, "m.safetensors").code == 0
    ran = run_alone("import", "m.safetensors", "warm", "--model", "train:build", "--partial", fresh=False)
    assert ran.code == 0, ran.err
    assert "kept its initial value: model/head" in ran.out
    assert "in the source and not used: model/dense/kernel" in ran.out
    with ckptflow.open_checkpoint("warm") as warm, ckptflow.open_checkpoint(root) as old:
        assert np.array_equal(warm["model/embedding"], old["model/embedding"])


def test_objects_by_name() -> None:
    assert programs.load_object(None) is None
    assert programs.load_object("os.path:sep") == os.sep
    assert programs.load_object("collections:OrderedDict", is_made=True) == {}
    with pytest.raises(ValueError, match="AttributeError"):
        programs.load_object("os:nothing.at.all")
