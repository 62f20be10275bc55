"""`--best METRIC` in `ls` and `export`, and `list_checkpoints(best=…)`: one ranking, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptflow
from ckptflow.storage.opening import open_store
from tests.cli.runner import Runner
from tests.roots import Life, make_root


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """By loss 30 is best, by accuracy 20; 40 has no loss, 50 has no metric."""
    store = open_store(root := str(tmp_path / "run"))
    life = Life(store)
    for step, loss, accuracy in ((10, 0.5, 0.1), (20, 0.4, 0.9), (30, 0.2, 0.3)):
        life.save(step, metrics={"loss": loss, "accuracy": accuracy})
    life.save(40, metrics={"accuracy": 0.2})
    life.save(50)
    store.close()
    return root


def test_the_list_has_the_best_first(measured: str) -> None:
    assert [found.step for found in ckptflow.list_checkpoints(measured)] == [10, 20, 30, 40, 50]
    assert [found.step for found in ckptflow.list_checkpoints(measured, best="loss")] == [30, 20, 10]
    by_accuracy = ckptflow.list_checkpoints(measured, best="accuracy", mode="max")
    assert [found.step for found in by_accuracy] == [20, 30, 40, 10]
    assert ckptflow.list_checkpoints(measured, best="auc", mode="max") == []
    with pytest.raises(ValueError, match='give mode="max"'):
        ckptflow.list_checkpoints(measured, best="accuracy")
    with pytest.raises(ValueError, match="best="):
        ckptflow.list_checkpoints(measured, mode="max")


def test_ls_shows_the_best_first(runner: Runner, measured: str) -> None:
    ran = runner("ls", measured, "--best", "loss")
    assert (ran.code, ran.err) == (0, "")
    head, *rows = ran.out.splitlines()
    assert head.split()[:2] == ["best", "step"]
    assert [row.split()[:2] for row in rows] == [["1", "30"], ["2", "20"], ["3", "10"], ["-", "40"], ["-", "50"]]
    assert rows[-1].endswith("newest")
    told = runner("ls", measured, "--best", "accuracy", "--mode", "max", "--json").json
    assert [(row["step"], row["rank"]) for row in told["checkpoints"][:2]] == [(20, 1), (30, 2)]
    assert told["checkpoints"][-1]["rank"] is None
    assert told["resumes_from"] == "000000000050-i0001"
    assert {row["rank"] for row in runner("ls", measured, "--json").json["checkpoints"]} == {None}


def test_what_is_superseded_has_no_rank(runner: Runner, measured: str) -> None:
    life = Life(open_store(measured), step=20)
    life.save(20, metrics={"loss": 0.4})
    told = runner("ls", measured, "--all", "--best", "loss", "--json").json
    ranks = {(row["step"], row["incarnation"]): row["rank"] for row in told["checkpoints"]}
    assert [ranks[key] for key in ((20, 2), (10, 1), (20, 1), (30, 1))] == [1, 2, None, None]
    assert [found.step for found in ckptflow.list_checkpoints(measured, best="loss")] == [20, 10]


def test_export_of_the_best(runner: Runner, measured: str, tmp_path: Path) -> None:
    file = f"{tmp_path}/m.safetensors"
    assert runner("export", measured, file, "--best", "loss", "--json").json["step"] == 30
    best = ("--best", "accuracy", "--mode", "max", "--overwrite")
    assert runner("export", measured, file, *best, "--json").json["step"] == 20


@pytest.mark.parametrize(
    "root", ["memory://alice@best/run", "memory://best/run?x=1", "memory://best/token=abc/run", "memory://best/slash/"]
)
def test_export_of_the_best_where_not_all_of_the_url_is_shown(runner: Runner, tmp_path: Path, root: str) -> None:
    make_root(root, (1, 2), metrics={"loss": 0.5})
    ran = runner("export", root, f"{tmp_path}/m.safetensors", "--best", "loss", "--json")
    assert (ran.code, ran.json["step"]) == (0, 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--best accuracy", "give --mode max if the highest is"),
        ("--best loss --mode lowest", "--mode is min or max, not 'lowest'"),
        ("--best los --mode min", "no checkpoint here has the metric 'los'; there is accuracy, loss"),
        ("--mode max", "give the metric as --best METRIC"),
    ],
)
def test_what_makes_no_sense_is_refused(runner: Runner, measured: str, tmp_path: Path, args: str, said: str) -> None:
    for verb in (("ls", measured), ("export", measured, f"{tmp_path}/m.safetensors")):
        ran = runner(*verb, *args.split())
        assert (ran.code, ran.out) == (2, "")
        assert said in ran.err


def test_a_metric_of_what_is_replaced_alone(runner: Runner, tmp_path: Path) -> None:
    """What is pinned counts, and beside it a newer one of the same step, which stands for both."""
    life = Life(open_store(root := str(tmp_path / "run")))
    life.save(10)
    life.save(20, metrics={"loss": 0.5})
    runner("pin", root, "--step", "20")
    Life(open_store(root)).save(20)
    assert len(ckptflow.list_checkpoints(root)) == 3
    for verb in (("ls", root), ("export", root, f"{tmp_path}/m.safetensors")):
        ran = runner(*verb, "--best", "loss")
        assert (ran.code, ran.out) == (2, "")
        assert "no checkpoint here has the metric 'loss' (those of the same step that are newer have not)" in ran.err


def test_what_export_alone_refuses(runner: Runner, measured: str, tmp_path: Path) -> None:
    file = f"{tmp_path}/m.safetensors"
    ran = runner("export", measured, file, "--best", "loss", "--step", "10")
    assert ran.code == 2
    assert "give one of them" in ran.err
    ran = runner("export", f"{tmp_path}/empty", file, "--best", "loss")
    assert ran.code == 1
    ran = runner("export", f"{measured}/000000000010-i0001", file, "--best", "loss")
    assert ran.code == 2
    assert "the run's root is" in ran.err
