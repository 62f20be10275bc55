"""The floors of pyproject.toml leave out the versions with an advisory that touches what we do with the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# Package, the first version without it, and the advisory. Read in November 2026 in osv.dev and GitHub's database.
ADVISORIES = [
    ("aiohttp", "3.13.4", "PYSEC-2026-2100: Cookie and Proxy-Authorization go along to another origin"),
    ("aiohttp", "3.14.0", "CVE-2026-47265: a request's cookies go along to another origin"),
    ("aiohttp", "3.14.4", "PYSEC-2026-4392: a server makes a client keep cookies without limit"),
    ("h5py", "3.14.0", "CVE-2026-26200: HDF5 before 1.14.4-2 writes past a buffer; wheels of 3.14.0 hold 1.14.6"),
    ("jinja2", "3.1.6", "CVE-2025-27516: |attr leaves the sandbox"),
    ("keras", "3.8.0", "CVE-2025-1550: a config calls any function"),
    ("keras", "3.11.0", "CVE-2025-8747: safe mode passed by"),
    ("keras", "3.13.1", "CVE-2026-1669: HDF5 with data in other files"),
    ("keras", "3.13.2", "CVE-2026-1462: TFSMLayer loads any SavedModel"),
    ("keras", "3.14.0", "GHSA-hqp4-2352-xf5r: an archive's names leave the folder"),
    ("keras", "3.15.1", "a report of Orbax assets that leave the folder, in 3.14.0 to 3.15.0; without a number"),
]


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return {found.name.lower(): found for found in map(Requirement, texts) if found.specifier}


@pytest.mark.parametrize(("package", "fixed", "advisory"), ADVISORIES, ids=lambda value: value.partition(":")[0])
def test_no_version_with_an_advisory_is_taken(package: str, fixed: str, advisory: str) -> None:
    floors = [Version(each.version) for each in requirements()[package].specifier if each.operator == ">="]
    assert max(floors) >= Version(fixed), advisory


def test_what_is_installed_by_make_is_what_is_asked_for() -> None:
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    versions = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    asked = {name.replace("_", "-"): found.specifier for name, found in requirements().items()}
    wrong = {
        name: versions[name] for name, wanted in asked.items() if name in versions and versions[name] not in wanted
    }
    assert wrong == {}
