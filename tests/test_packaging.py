"""What is shipped: one version, the type marker, the command, and nothing else; an sdist that is the whole project."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import ckptflow
from tests.distributions import ROOT, Distributions
from tests.waiting import HANG_S

NAME = f"ckptflow-{ckptflow.__version__}"
NOT_IN_THE_SDIST = {".ci"}  # how this repository's own CI is started


@pytest.fixture(scope="module")
def wheel(release: Distributions) -> zipfile.ZipFile:
    return zipfile.ZipFile(release.wheel)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, release: Distributions) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(release.sdist) as archive:
        archive.extractall(folder, filter="data")
    assert [path.name for path in folder.iterdir()] == [NAME]
    return folder / NAME


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "ckptflow/py.typed" in names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "ckptflow").rglob("*.py")} <= names
    assert {name.split("/")[0] for name in names} == {"ckptflow", f"{NAME}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_has_the_command_and_the_version(wheel: zipfile.ZipFile) -> None:
    assert "ckptflow = ckptflow.cli:main" in wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert f"Version: {ckptflow.__version__}\n" in wheel.read(f"{NAME}.dist-info/METADATA").decode()


def test_the_sdist_holds_what_is_tracked_and_nothing_generated(sdist: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone: nothing tells what is tracked")
    there = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    tracked = {name for name in _git_files() if name.split("/")[0] not in NOT_IN_THE_SDIST and (ROOT / name).exists()}
    assert tracked - there == set()
    # A file that is new and not ignored may be there before it is tracked.
    assert there - _git_files("--cached", "--others", "--exclude-standard") == {"PKG-INFO"}


def _git_files(*options: str) -> set[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=True)
    return set(filter(None, done.stdout.split("\0")))


def test_no_path_of_the_machine_is_shipped(sdist: Path, wheel: zipfile.ZipFile) -> None:
    paths = [str(place).encode() for place in (ROOT, sys.prefix)]
    files = {str(path.relative_to(sdist)): path.read_bytes() for path in sdist.rglob("*") if path.is_file()}
    files |= {name: wheel.read(name) for name in wheel.namelist()}
    assert [name for name, data in files.items() if any(path in data for path in paths)] == []


def test_the_sdist_runs_its_own_tests(sdist: Path) -> None:
    """A slice of them, from the unpacked sdist and against the package in it."""
    tests = ["tests/format/test_components.py", "tests/format/test_spec.py"]
    program = f"""
import sys, pytest, ckptflow
print("package:", ckptflow.__file__)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *{tests}]))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=sdist, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"package: {sdist / 'ckptflow' / '__init__.py'}" in done.stdout


def test_the_version_is_in_one_place() -> None:
    places = [
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "ckptflow").rglob("*.py"), *(ROOT / "docs").rglob("*.py"), ROOT / "pyproject.toml"]
        if re.search(rf'(?:version|release)\w*\s*=\s*"{re.escape(ckptflow.__version__)}"', path.read_text())
    ]
    assert places == ["ckptflow/__init__.py"]
    assert f"## {ckptflow.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("ckptflow")


def test_the_versions_that_are_stated_are_those_that_are_asked_for() -> None:
    """docs/install.md says which Python and TensorFlow are supported; pyproject.toml asks pip for just those."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "install.md").read_text()
    (tensorflow,) = [text for text in project["dependencies"] if text.startswith("tensorflow>")]
    low, high = re.findall(r"\d+\.\d+", tensorflow)
    assert int(high.split(".")[1]) == int(low.split(".")[1]) + 1
    pythons = [text.split(" :: ")[-1] for text in project["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert f">={pythons[0]}" == project["requires-python"]
    rows = re.findall(r"^\| (3\.\d+)\S* \| (2\.\d+)\S* \| .* \| supported \|$", page, flags=re.MULTILINE)
    assert rows == [(python, low) for python in pythons]
    extras = set(project["optional-dependencies"]) - {"bench", "dev", "docs"}
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == extras
