"""Roots in which one record was forged, by chance: its parts changed, its seal and checksums made right again.

Run as a program it makes so many roots, does what a person does with each under limits of memory and time, and prints
what went wrong as one line of JSON for each: `python -m tests.chaos.forgeries FOLDER FIRST COUNT`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import typer

import ckptflow
from ckptflow import CkptflowError
from ckptflow.cli.app import app
from ckptflow.cli.exits import report
from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.resume import Resume
from ckptflow.storage.opening import open_store
from tests.roots import Alone, make_root

COMMAND = typer.main.get_command(app)  # as `ckptflow.cli.main` runs it, made once
MEMORY_BYTES = 512 * 2**20  # that one process may take beside what it has when it begins
HANG_S = 120  # generous, since a shared machine may be busy
NUMBERS: list[Any] = [
    0, 1, -1, 2, 7, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), True, None,
    0.5, -0.0, 1e308, 5e-324, "@raw:1e400@", "@raw:-1e999@", "@raw:NaN@", "@raw:Infinity@", "@raw:1E2@", "@raw:-0@",
    f"@raw:{'9' * 20_000}@", f"@raw:-{'1' * 400}@", f"@raw:0.{'3' * 20_000}@", f"@raw:1e{'9' * 5000}@",
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "/", "..", "a", "a" * 4096, "a" * 4097, "ü", "\x00", "\n\r\t", "\x1b[31m\x07", "\u009b31m", "\u202e\u2066",
    "\ufeff", "</script><b>", "{}%s$x^2$", "[/bold]", "`|`", "\U0001f600" * 99, '@raw:"\\ud800"@', "=1+1", "$int",
    "000000000001-i0001", "000000000002-i0002", "999999999999999999-i9999", "lineage/000001.json", "://" * 2000,
]  # fmt: skip
TIMES = [
    "0000-01-01T00:00:00+00:00", "0001-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00-23:59",
    "9999-12-31T23:59:59.999999-23:59", "9999-12-31T23:59:59.999999+23:59", "10000-01-01T00:00:00+00:00", "20240101",
    "2024-W01-1", "2024-01-01", "2024-02-30T00:00:00", "1969-12-31T23:59:60Z", "2024-01-01T24:00:00+00:00", "now", "",
    "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00+23:59:59.999999", "1900-01-01T00:00:00", "2038-01-19T03:14:08Z",
    "2024-01-01T00:00:00+05:30:17", "9999-12-31T23:59:59", "٢٠٢٤-01-01",
]  # fmt: skip
VALUES: list[Any] = [
    {"$int": "0x" + "f" * 20_000}, {"$int": "f" * 20_000}, {"$int": "-0x1"}, {"$int": "1_0"}, {"$int": ""}, {"$int": 5},
    {"$float": "nan"}, {"$float": "x"}, {"$bytes": "AA=="}, {"$bytes": "!"}, {"$str": "7aCA"}, {"$str": "/w=="},
    {"$tuple": [{"$tuple": []}]}, {"$dict": [[1, 2], [1, 3]]}, {"$dict": [[[1], 2]]}, {"$dict": [[1]]}, {"$dict": 7},
    {"$dict": [[{"$float": "nan"}, 2]]}, {"$x": 1}, {"$int": "1", "a": 2}, {"$$x": 1}, {"": {"": ""}}, [[]] * 99,
    list(range(50_000)), dict.fromkeys(map(str, range(20_000)), 0), "@raw:" + "[" * 99 + "]" * 99 + "@",
    "@raw:" + "[" * 5000 + "]" * 5000 + "@", '@raw:{"a":1,"a":2}@',
]  # fmt: skip
BY_NAME: dict[str, list[Any]] = {"created_at": TIMES, "began_at": TIMES, "metadata": VALUES, "python_state": VALUES}


@dataclass
class Forgery:
    """One root. `number` decides all of it. `broken`: the promises that were not kept."""

    template: Path
    root: Path
    number: int
    forged: str = ""
    broken: list[str] = field(default_factory=list)

    def run(self) -> None:
        rng = self.rng = random.Random(self.number)
        shutil.copytree(self.template, self.root)
        try:
            victim = self._forge(rng)
            self.folders = sorted(path.name for path in self.root.glob("0*"))
            self.sound = [name for name in self.folders if name != victim]
            acts: list[Callable[[], None]] = [
                self._show, self._verify, self._diff, self._plan, self._watch, self._report, self._read,
            ]  # fmt: skip
            for act in (self._ls, *rng.sample(acts, 2), rng.choice([self._resume, self._prune])):
                self._guarded(act)
        finally:
            shutil.rmtree(self.root)

    def _forge(self, rng: random.Random) -> str | None:
        """Returns whose record was forged; None for a claim, which is no checkpoint's."""
        kind = rng.choice(["manifest", "manifest", "manifest", "claim", "shard"])
        if kind == "claim":
            path = rng.choice(sorted(self.root.glob("lineage/*.json")))
            path.write_bytes(sealed(as_json(self._changed(rng, unsealed(path.read_bytes())))))
            return None
        manifest = rng.choice(sorted(self.root.glob("0*/manifest.json")))
        record = unsealed(manifest.read_bytes())
        if kind == "shard":
            shard = rng.choice(record["shards"])
            path = manifest.with_name(shard["name"])
            data = path.read_bytes()
            end = 8 + int.from_bytes(data[:8], "little")
            head = as_json(self._changed(rng, json.loads(data[8:end])))
            data = len(head).to_bytes(8, "little") + head + data[end:]
            path.write_bytes(data)
            shard["size_bytes"], shard["crc32c"] = len(data), crc32c.crc32c(data)
            manifest.write_bytes(sealed(as_json(record)))
        else:
            manifest.write_bytes(sealed(as_json(self._changed(rng, record))))
        return manifest.parent.name

    def _changed(self, rng: random.Random, record: Any) -> Any:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            places = list(places_in(record))
            if not places:  # all was deleted
                break
            holder, key = rng.choice(places if rng.random() < 0.5 else [p for p in places if p[0] is record] or places)
            old = holder[key]
            act = rng.random()
            if act < 0.7:
                typed = NUMBERS if isinstance(old, int | float) else TEXTS if isinstance(old, str) else VALUES
                pool = BY_NAME.get(str(key)) or rng.choice([typed, typed, NUMBERS, TEXTS, VALUES])
                holder[key] = copy.deepcopy(rng.choice(pool))
            elif act < 0.8:
                del holder[key]
            elif act < 0.9:
                other, place = rng.choice(places)
                with contextlib.suppress(IndexError, KeyError):
                    holder[key] = copy.deepcopy(other[place])
            elif isinstance(holder, dict):
                holder[rng.choice(["version", "kind", "format", "metrics", "software", "x", *TEXTS[:20]])] = rng.choice(
                    [*NUMBERS, *TEXTS, *VALUES, {"loss": rng.choice(NUMBERS)}, {"x": rng.choice(TEXTS)}]
                )
            else:
                holder.extend([old] * rng.choice([1, 100, 5000]))
            self.forged += f" {key}"
        return record

    # ---- what a person does

    def _ls(self) -> None:
        rows = json.loads(self._verb("ls", "--all", "--json"))["checkpoints"]
        self._check([row["folder"] for row in rows] == self.folders, "ls hides a checkpoint")
        self._verb("ls", "--all")

    def _show(self) -> None:
        for name in self.sound:
            self._verb("show", "--step", str(int(name.partition("-")[0])), *self.rng.choice([[], ["--json"]]))
        self._verb("show", "--json", allowed=(0, 1, 5))
        for name in self.folders:
            self._verb("show", below=name, allowed=(0, 1, 5))
            self._verb("show", "--tensors", below=name, allowed=(0, 1, 5))

    def _verify(self) -> None:
        for name in self.sound:
            self._verb("verify", below=name)
        self._verb("verify", "--all", "--json", allowed=(0, 1, 5))

    def _diff(self) -> None:
        one, other = self.rng.sample(self.folders, 2)
        is_sound = {one, other} <= set(self.sound)
        self._verb("diff", str(self.root / other), "--json", below=one, allowed=(0, 1) if is_sound else (0, 1, 5))

    def _plan(self) -> None:
        told = json.loads(self._verb("prune", "--last", "1", "--json"))
        self._check([each["folder"] for each in told["folders"]] == self.folders, "prune hides a checkpoint")
        self._verb("prune", "--best", "loss:2", "--every-seconds", "60", allowed=(0, 2))

    def _prune(self) -> None:
        self._verb("prune", "--last", "1", "--yes", allowed=(0, 2, 5))

    def _watch(self) -> None:
        for more in ([], ["--json"]):
            self._verb("watch", "--until-step", "0", *more)

    def _report(self) -> None:
        told = json.loads(self._verb("report", "--json"))
        self._check([each["folder"] for each in told["checkpoints"]] == self.folders, "report hides a checkpoint")
        if self.rng.random() < 0.2:
            self._verb("report", "--last", "1", "--output", str(self.root.with_suffix(".html")))
            self.root.with_suffix(".html").unlink()

    def _read(self) -> None:
        known = {(each.step, each.incarnation) for each in ckptflow.list_checkpoints(self.root)}
        self._check(bool(known), "list_checkpoints gives none")
        for name in self.folders:
            try:
                with ckptflow.open_checkpoint(self.root / name) as opened:
                    assert opened.python_state is not None
                    opened.read(list(opened))
            except CkptflowError as error:
                self._check(name not in self.sound, f"{name} cannot be read: {error}"[:300])

    def _resume(self) -> None:
        store = open_store(str(self.root))
        with contextlib.suppress(CkptflowError):
            list_root(store)
            resume = Resume(
                store, Alone(), Summaries(store), check=nothing, load=nothing, read_only=self.rng.random() < 0.5
            )
            resume.run(None)
        store.close()

    def _verb(self, verb: str, *args: str, below: str = "", allowed: tuple[int, ...] = (0,)) -> str:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                COMMAND(args=[verb, str(self.root / below), *args], prog_name="ckptflow")
                code: Any = 0
            except SystemExit as left:
                code = left.code or 0
            except Exception as error:
                code = report(error)
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        self._check(code in allowed, f"{verb} {' '.join(args)} ends with {code}: {texts[1][:300]}")
        return texts[0]

    def _check(self, is_right: bool, what: str) -> None:
        if not is_right:
            self.broken.append(what)

    def _guarded(self, act: Callable[[], None]) -> None:
        def hang(*_: object) -> None:
            raise TimeoutError(f"HANG of more than {HANG_S} s")

        signal.signal(signal.SIGALRM, hang)
        signal.setitimer(signal.ITIMER_REAL, HANG_S, 2)
        try:
            act()
        except Exception as error:
            self.broken.append(f"RAW {type(error).__name__} in {act.__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def nothing(*_: object) -> None:
    pass


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member and item, as what holds it and its key there."""
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_in(value[key])


def as_json(record: Any) -> bytes:
    """The JSON of a record; what is marked as raw stands in it as it is."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    if "@raw:" in text:
        head, *rest = text.split('"@raw:')
        text = head + "".join(
            part.partition('@"')[0].replace('\\"', '"').replace("\\\\", "\\") + part.partition('@"')[2] for part in rest
        )
    return text.encode("utf-8", "surrogatepass")


def unsealed(data: bytes) -> Any:
    record = json.loads(data)
    del record["crc32c"]
    return record


def sealed(body: bytes) -> bytes:
    return body[:-1] + b',"crc32c":"%08x"}' % crc32c.crc32c(body[:-1])


def make_template(folder: Path) -> None:
    """Two incarnations, five checkpoints: metrics, metadata, Python state, two workers, something outside."""
    more: dict[str, Any] = {
        "metrics": {"loss": 0.5},
        "metadata": {"note": [1, None]},
        "python_state": {"data": {"seen": 7}},
    }
    arrays = {"w": np.arange(600, dtype=np.float32).reshape(20, 30), "b": np.int64(3), "s": np.asarray([b"a"], object)}
    make_root(str(folder), (10, 20, 30), world_size=2, arrays=arrays, **more)
    make_root(str(folder), (40, 50), arrays=arrays, **more)


def work(folder: Path, numbers: range) -> Iterator[Forgery]:
    """One forgery after the other, under a limit of memory; those that broke a promise."""
    make_template(folder / "template")
    for number in numbers:
        forgery = Forgery(folder / "template", folder / "run", number)
        forgery.run()
        if number == numbers[0]:  # by now all is loaded that will be
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
        if forgery.broken:
            yield forgery


if __name__ == "__main__":
    os.environ["TZ"] = "America/New_York"
    where, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for found in work(where, range(first, first + count)):
        print(json.dumps({"number": found.number, "forged": found.forged, "broken": found.broken}), flush=True)
