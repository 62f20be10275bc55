"""Everything that can befall the files of a root, by chance: bits, blocks, names, links, kinds of file, permissions."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n"
JUNK = [HTML, b"{}", b"null", b"[]", b"\0" * 512, b"\xff\xfe\x00", b'{"format":' + b"[" * 50_000, b"not json\n" * 400]
STRAYS = [
    "000000000070-i0009/", "000000000070-i0009/manifest.json", "lineage/000077.json", "lineage/x", "pins/x",
    "0-i0001/x", "000000000070-i0002-r9/manifest.json", "manifest.json", "a folder/with spaces/ü.json", ".hidden",
]  # fmt: skip
NEW_NAMES = ["000000000070-i0003", "000000000005-i0009", "000000000030-i0001-r2", "backup", "000000000020-i0009"]
WEIGHTS = {"manifest": 5, "shard": 5, "receipt": 1, "claim": 2, "pin": 1}

Damage = Callable[[random.Random, Path, Path], None]  # chance, what is damaged, another run's root


def files_of(root: Path, kind: str) -> list[Path]:
    """The files of one kind in a root, in a fixed order."""
    pattern = {"manifest": "0*/manifest.json", "shard": "0*/shard-*", "receipt": "0*/receipt-*",
               "claim": "lineage/*", "pin": "pins/*"}[kind]  # fmt: skip
    return sorted(path for path in root.glob(pattern) if path.is_file())


def checkpoints_of(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("0*") if path.is_dir() and not path.is_symlink())


# ---- what is in a file


def flip(rng: random.Random, path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(rng: random.Random, path: Path, other: Path) -> None:
    os.truncate(path, int(path.stat().st_size * rng.choice([0.0, rng.random(), 0.9999])))


def extend(rng: random.Random, path: Path, other: Path) -> None:
    more = [b"\0", b"\n", rng.randbytes(4096), path.read_bytes(), HTML]
    with path.open("ab") as file:
        file.write(rng.choice(more))


def blank(rng: random.Random, path: Path, other: Path) -> None:
    """A block of zeros, or of what was elsewhere."""
    data = bytearray(path.read_bytes())
    size = min(len(data), rng.choice([1, 16, 512, 4096]))
    at = rng.randrange(len(data) - size + 1)
    data[at : at + size] = rng.choice([bytes(size), rng.randbytes(size), bytes(data[:size])])
    path.write_bytes(data)


def junk(rng: random.Random, path: Path, other: Path) -> None:
    path.write_bytes(rng.choice(JUNK))


def huge(rng: random.Random, path: Path, other: Path) -> None:
    """Sparse: nobody may read all of it, nor allocate it."""
    os.truncate(path, 2**23 if path.name == "manifest.json" else rng.choice([2**33, 2**40]))


def of_another_checkpoint(rng: random.Random, path: Path, other: Path) -> None:
    """The same file of another checkpoint or claim: whole, valid, and not this one's."""
    choices = sorted({*path.parent.parent.glob(f"0*/{path.name}"), *path.parent.glob(path.name[:3] + "*")} - {path})
    choices = [choice for choice in choices if choice.is_file()]
    if choices:
        shutil.copyfile(rng.choice(choices), path)


def of_another_run(rng: random.Random, path: Path, other: Path) -> None:
    theirs = other / path.parent.name / path.name
    if theirs.is_file():
        shutil.copyfile(theirs, path)


def swap(rng: random.Random, path: Path, other: Path) -> None:
    """Two files change places."""
    sibling = rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file()))
    data = path.read_bytes()
    path.write_bytes(sibling.read_bytes())
    sibling.write_bytes(data)


# ---- what a name stands for


def delete(rng: random.Random, path: Path, other: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def link(rng: random.Random, path: Path, other: Path) -> None:
    """A symbolic link: to where it was moved, to nothing, to itself, to something else."""
    moved = path.with_name(f"moved-{rng.randrange(10**9)}")
    path.rename(moved)
    path.symlink_to(rng.choice([str(moved), str(moved), "nothing", path.name, "/etc", "/etc/hostname"]))


def other_kind(rng: random.Random, path: Path, other: Path) -> None:
    """A folder where a file was, a file where a folder was, or a pipe."""
    was_folder = path.is_dir()
    delete(rng, path, other)
    if rng.random() < 0.3:
        os.mkfifo(path)
    elif was_folder:
        path.write_bytes(rng.choice(JUNK))
    else:
        path.mkdir()


def forbid(rng: random.Random, path: Path, other: Path) -> None:
    path.chmod(rng.choice([0o000, 0o000, 0o444, 0o555]))


def rename(rng: random.Random, path: Path, other: Path) -> None:
    target = path.with_name(rng.choice(NEW_NAMES))
    if not target.exists():
        path.rename(target)


def exchange(rng: random.Random, path: Path, other: Path) -> None:
    sibling = rng.choice(checkpoints_of(path.parent))
    if sibling != path:
        aside = path.with_name("aside")
        path.rename(aside)
        sibling.rename(path)
        aside.rename(sibling)


def duplicate(rng: random.Random, path: Path, other: Path) -> None:
    shutil.copytree(path, path.with_name(rng.choice(NEW_NAMES)), dirs_exist_ok=True)


def empty(rng: random.Random, path: Path, other: Path) -> None:
    for each in path.iterdir():
        if each.is_file() and rng.random() < 0.8:
            each.unlink()


def replace_by_another_run(rng: random.Random, path: Path, other: Path) -> None:
    theirs = other / path.name
    if theirs.is_dir():
        shutil.rmtree(path)
        shutil.copytree(theirs, path)


def add_of_another_run(rng: random.Random, path: Path, other: Path) -> None:
    theirs = rng.choice(checkpoints_of(other))
    shutil.copytree(theirs, path.with_name(theirs.name), dirs_exist_ok=True)


CONTENT = [flip, flip, flip, truncate, extend, blank, junk, huge, of_another_checkpoint, of_another_run, swap]
NAMES = [delete, delete, link, other_kind, forbid]
FOLDERS = [
    delete,
    link,
    other_kind,
    forbid,
    rename,
    exchange,
    duplicate,
    empty,
    replace_by_another_run,
    add_of_another_run,
]


def stray(rng: random.Random, root: Path, other: Path) -> str:
    name = rng.choice(STRAYS)
    path = root / name
    if name.endswith("/"):
        path.mkdir(exist_ok=True)
    elif not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.choice(JUNK))
    return f"stray {name}"


def damage_once(rng: random.Random, root: Path, other: Path) -> str:
    """One damage to the root, by chance; says which. Where chance has picked what is not there, nothing is done."""
    roll = rng.random()
    if roll < 0.05:
        return stray(rng, root, other)
    if roll < 0.10:
        path = root / rng.choice(["lineage", "lineage", "pins"])
        act = rng.choice([delete, link, other_kind, forbid])
    elif roll < 0.12:
        path, act = root, rng.choice([link, forbid])
    elif roll < 0.35:
        path, act = rng.choice(checkpoints_of(root) or [root / "none"]), rng.choice(FOLDERS)
    else:
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        found = files_of(root, kind)
        path = (found[-1] if rng.random() < 0.4 else rng.choice(found)) if found else root / "none"
        act = rng.choice(CONTENT if rng.random() < 0.75 else NAMES)
    if not os.path.lexists(path):
        return f"nothing at {path.name}"
    act(rng, path, other)
    return f"{act.__name__} {path.relative_to(root)}"
