"""What is shipped: one version, the type marker, the command, and nothing else."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ckptflow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--disable-pip-version-check",
        "-w",
        str(folder),
    ]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "ckptflow/py.typed" in names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "ckptflow").rglob("*.py")} <= names
    assert {name.split("/")[0] for name in names} == {"ckptflow", f"ckptflow-{ckptflow.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_has_the_command_and_the_version(wheel: zipfile.ZipFile) -> None:
    info = f"ckptflow-{ckptflow.__version__}.dist-info"
    assert "ckptflow = ckptflow.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"Version: {ckptflow.__version__}\n" in wheel.read(f"{info}/METADATA").decode()


def test_the_version_is_in_one_place() -> None:
    places = [
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "ckptflow").rglob("*.py"), ROOT / "pyproject.toml"]
        if re.search(rf'version\w*\s*=\s*"{re.escape(ckptflow.__version__)}"', path.read_text())
    ]
    assert places == ["ckptflow/__init__.py"]
    assert f"## {ckptflow.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("ckptflow")


def test_types_reach_a_user(tmp_path: Path) -> None:
    """mypy sees the package's own types in a user's code: `py.typed` works, and a wrong call is found."""
    user = tmp_path / "user.py"
    user.write_text(
        "import ckptflow\n"
        "with ckptflow.CheckpointManager('x', {}) as manager:\n"
        "    reveal_type(manager.restore_latest())\n"
        "    manager.save('one')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={ROOT / '.mypy_cache' / 'user'}", str(user)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert "Checkpoint | None" in done.stdout, done.stdout + done.stderr
    assert '"save" of "CheckpointManager" has incompatible type "str"' in done.stdout
