"""What a user gets: the wheel in an empty environment, from the sdist; the quickstart there; then with every extra.

Nothing of this checkout is in that environment: the programs run elsewhere, with its own Python and its own packages.
Those are links to what `make setup` has installed: just what the metadata ask for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ckptflow
from tests.distributions import ROOT, Distributions
from tests.processes import run_python
from tests.servers import Server
from tests.waiting import HANG_S

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_FOR_USERS = {"bench", "dev", "docs"}
EXTRAS = sorted(set(PROJECT["optional-dependencies"]) - NOT_FOR_USERS)

# One for each extra: a program that uses what the extra brings. Without the extra it must name what to install.
EXTRA_CHECKS = {
    "fast": """
from ckptflow.storage.opening import open_store
open_store("s3://bucket/run", {"client": "obstore", "anon": True, "client_kwargs": {"region_name": "us-east-1"}})
""",
    "report": """
import ckptflow, tensorflow as tf
from ckptflow.cli import main
with ckptflow.CheckpointManager("runs/reported", {"v": tf.Variable(1.0)}, fresh=True) as manager:
    manager.save(1)
main(["report", "runs/reported", "--output", "page.html"])
""",
    "telemetry": """
import ckptflow, os, tensorflow as tf
from ckptflow import telemetry
sinks = [make() for make in (lambda: telemetry.TensorBoard("logs"), telemetry.Prometheus, telemetry.OpenTelemetry)]
with ckptflow.CheckpointManager("runs/told", {"v": tf.Variable(1.0)}, on_event=sinks) as manager:
    manager.save(1)
assert os.listdir("logs")
import prometheus_client
assert "ckptflow_save_seconds_count{" in prometheus_client.generate_latest().decode()
""",
}

# One process does them all: each by itself would import TensorFlow again.
RUN_CHECKS = """
import contextlib, io, json, sys, traceback
ended = {}
for name, check in json.loads(sys.argv[1]).items():
    code, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            exec(check, {"__name__": "__main__"})
        except SystemExit as left:
            code = left.code
        except Exception:
            code = 1
            traceback.print_exc()
    ended[name] = [code, said.getvalue()]
print("CHECKS", json.dumps(ended))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to run things in."""

    path: Path
    folder: Path

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        """What the command prints, on both streams. It sees no other environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        kept |= {"PATH": f"{self.path / 'bin'}:/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3", **env}
        done = subprocess.run(
            [str(self.path / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env=kept,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=580,
            check=False,
        )
        printed = done.stdout[-20_000:] + done.stderr[-20_000:]
        assert done.returncode == code, f"{command}: {done.returncode}\n{printed}"
        return printed

    def run_checks(self) -> dict[str, tuple[int, str]]:
        """How the check of each extra ends, and what it says."""
        printed = self.run("python", "-c", RUN_CHECKS, json.dumps(EXTRA_CHECKS))
        (answer,) = re.findall(r"^CHECKS (.*)$", printed, re.MULTILINE)
        return {name: (code or 0, said) for name, (code, said) in json.loads(answer).items()}

    def add(self, extras: Iterable[str] = ()) -> None:
        """pip and what the wheel requires, with these extras: links to what was installed for the tests, no more."""
        site = Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # pip is linked as well: `venv` would install it, which takes longer than all the links.
        for distribution in [metadata.distribution("pip"), *required("ckptflow", frozenset(extras))]:
            for file in distribution.files or ():
                link = site / file
                if file.parts[0] != ".." and not link.exists():  # not its commands
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.locate())


def required(name: str, extras: frozenset[str]) -> list[metadata.Distribution]:
    """The distributions that one needs, and those that they need, as their metadata say."""
    found: dict[str, metadata.Distribution] = {}
    wanted, seen = [(name, extras)], set()
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = found.setdefault(name, metadata.distribution(name))
        for requirement in map(Requirement, distribution.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                wanted.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return [distribution for name, distribution in found.items() if name != "ckptflow"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, release: Distributions) -> Environment:
    """The wheel and what it requires, nothing else."""
    environment = Environment(tmp_path_factory.mktemp("bare") / "venv", tmp_path_factory.mktemp("elsewhere"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment.path)], check=True, timeout=HANG_S)
    environment.add()
    pip = ("python", "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check")
    environment.run(*pip, "--no-deps", "--no-index", str(release.wheel))
    return environment


@pytest.fixture(scope="module")
def without(bare: Environment) -> dict[str, tuple[int, str]]:
    """How the check of each extra ends while none is installed."""
    return bare.run_checks()


@pytest.fixture(scope="module")
def with_extras(bare: Environment, without: dict[str, tuple[int, str]]) -> Environment:
    """The same environment with all that users can ask for."""
    assert without
    bare.add(EXTRAS)
    return bare


def quickstart(url: str) -> str:
    """README's first program, on `url`, saying what it restored."""
    first = re.search(r"^```python run\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert first
    assert '"runs/first"' in first[1]
    return first[1].replace('"runs/first"', repr(url)) + "\nprint('resumed at', restored and restored.step)\n"


def test_each_extra_has_a_check_here() -> None:
    assert set(EXTRAS) == set(EXTRA_CHECKS)


def test_nothing_of_the_checkout_is_there(bare: Environment) -> None:
    program = "import ckptflow, json, sys; print(json.dumps([ckptflow.__file__, ckptflow.__version__, sys.path]))"
    place, version, path = json.loads(bare.run("python", "-c", program))
    assert place.startswith(str(bare.path))
    assert version == ckptflow.__version__
    assert [entry for entry in path if entry.startswith((str(ROOT), sys.prefix))] == []
    assert "No broken requirements" in bare.run("python", "-m", "pip", "check")


def test_the_quickstart_saves_and_goes_on(bare: Environment) -> None:
    (bare.folder / "quickstart.py").write_text(quickstart("runs/first"))
    assert "resumed at None" in bare.run("python", "quickstart.py")
    assert "resumed at 100" in bare.run("python", "quickstart.py")
    listed = json.loads(bare.run("ckptflow", "ls", "runs/first", "--json"))
    assert [entry["step"] for entry in listed["checkpoints"]] == [20, 40, 60, 80, 100]
    assert "dense/kernel" in bare.run("ckptflow", "show", "runs/first")
    assert json.loads(bare.run("ckptflow", "verify", "runs/first", "--all", "--json"))["ok"]


def test_every_module_and_every_public_name_comes_without_extras(bare: Environment) -> None:
    """All but what draws the page of a run, which `report` reaches when it has looked for its extra."""
    program = """
import importlib, pkgutil, ckptflow
for name in ckptflow.__all__:
    getattr(ckptflow, name)
for module in pkgutil.walk_packages(ckptflow.__path__, "ckptflow."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert module.name.startswith("ckptflow.report."), module.name
        assert error.name in ("jinja2", "markupsafe"), error.name
"""
    bare.run("python", "-c", program)


@pytest.mark.chaos  # most of a minute, most of it TensorFlow's import: each format is tried elsewhere
def test_every_format_is_written_and_read_without_extras(bare: Environment) -> None:
    program = """
import keras, ckptflow
from ckptflow.interop.untrusted import probe
from ckptflow.interop.formats import FORMATS
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile("adam", "mse")
with ckptflow.CheckpointManager("runs/formats", {"model": model}) as manager:
    manager.save(1)
check = probe.check
for name, format in FORMATS.items():
    # Each probe begins with an empty interpreter: those of one file with HDF5 and one with a graph are enough.
    probe.check = check if name in ("weights", "saved-model") else lambda *_, **__: None
    place = "exported/" + name + (format.suffixes[0] if format.suffixes else "")
    ckptflow.export_checkpoint("runs/formats", place, format=name)
    if format.is_importable:
        code_of_the_model = {"model": model} if name == "weights" else {}
        ckptflow.import_model(place, "runs/from-" + name, format=name, **code_of_the_model)
    print("done:", name)
print("all", len(FORMATS))
"""
    printed = bare.run("python", "-c", program)
    assert f"all {printed.count('done: ')}" in printed


def test_what_is_missing_is_named_with_what_to_install(bare: Environment, without: dict[str, tuple[int, str]]) -> None:
    assert list(without) == list(EXTRA_CHECKS)
    for name, (code, printed) in without.items():
        assert code
        assert f"pip install 'ckptflow[{name}]'" in printed.splitlines()[-1], printed
    assert "adlfs" in bare.run("ckptflow", "ls", "abfs://container/run", code=2).splitlines()[-1]


def test_a_model_of_tf_keras_asks_for_tf_keras(bare: Environment, tmp_path: Path) -> None:
    """Written by the tests' own environment, which has it."""
    program = """
import sys, tf_keras
tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)]).save(sys.argv[1])
"""
    file = str(tmp_path / "old.keras")
    made = run_python("-c", program, file)
    assert made.returncode == 0, made.stderr
    said = bare.run("ckptflow", "import", file, "runs/old", code=2)
    assert "pip install tf_keras" in said.splitlines()[-1]


def test_a_users_program_is_checked_against_the_wheel(bare: Environment) -> None:
    """mypy --strict, reading the installed package: each public name has a type, and a wrong call is found."""
    names = [name for name in ckptflow.__all__ if name != "__version__"]
    (bare.folder / "user.py").write_text(
        "import ckptflow\n"
        "with ckptflow.CheckpointManager('x', {}, keep=[ckptflow.KeepLast(3)]) as manager:\n"
        "    reveal_type(manager.restore_latest())\n"
        "    step: int = manager.save(1, metrics={'loss': 0.5}).result().step\n"
        "    manager.save('one')\n" + "".join(f"reveal_type(ckptflow.{name})\n" for name in names)
    )
    python = str(bare.path / "bin" / "python")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "user.py"]
    env = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(command, cwd=bare.folder, env=env, capture_output=True, text=True, timeout=500, check=False)
    printed = done.stdout + done.stderr
    assert "Checkpoint | None" in printed
    revealed = re.findall(r'user\.py:\d+: note: Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == 1 + len(names), printed
    assert [text for text in revealed if text == "Any"] == []
    (error,) = re.findall(r"^\S+ error: .*$", done.stdout, re.MULTILINE)
    assert 'incompatible type "str"; expected "SupportsIndex"' in error


def test_the_extras_are_used(with_extras: Environment) -> None:
    found = with_extras.run_checks()
    assert {name: code for name, (code, _) in found.items()} == dict.fromkeys(EXTRAS, 0), found


@pytest.mark.chaos
def test_the_quickstart_on_s3_by_the_fast_client(with_extras: Environment, seaweedfs: Server) -> None:
    """A real S3 server, configured as a user does it: in the environment."""
    assert "No broken requirements" in with_extras.run("python", "-m", "pip", "check")
    options = seaweedfs.storage_options
    env = {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    program = quickstart("s3://ckptflow-tests/installed/first")
    program += "import sys\nassert 'obstore' in sys.modules\n"
    assert "resumed at None" in with_extras.run("python", "-c", program, **env)
    assert "resumed at 100" in with_extras.run("python", "-c", program, **env)
    verified = with_extras.run("ckptflow", "verify", "s3://ckptflow-tests/installed/first", "--json", **env)
    assert json.loads(verified)["ok"]
