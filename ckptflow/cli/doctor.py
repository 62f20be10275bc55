"""`ckptflow doctor`: whether a storage keeps the promises that checkpoints rely on."""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.options import Json, Options, OptionsJson, print_json, storage_options
from ckptflow.cli.render import bar, make_console
from ckptflow.errors import ObjectChangedError, ObjectExistsError, StorageError, StorageUnavailableError
from ckptflow.printable import printable
from ckptflow.storage.redaction import redact, redact_url
from ckptflow.storage.wrappers import can_copy

if TYPE_CHECKING:
    from ckptflow.storage.store import Store

# Told of every storage: no test of a minute can see it.
_CANNOT_SEE = (
    "that acknowledged data survives the loss of machines: that is the storage's own guarantee",
    "that two machines see the same data: everything ran on one; run it on another against the same URL as well",
    "rare failures: each promise was tried for seconds; a server that is not atomic, such as moto's, may pass",
)

_EXCLUSIVE = "racing creators have exactly one winner"
_COPIES_ANYTHING = "it ignores the condition of a copy and copies whatever exists"
_NOT_REFUSED = "ObjectExistsError was not raised"
_NO_CHECKSUMS = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise, tried. `why` says how it was broken."""

    promise: str
    is_kept: bool
    seconds: float
    why: str = ""


def doctor(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Where to test: in a new folder, which is removed again.", show_default=False
        ),
    ],
    large_mib: Annotated[
        int, typer.Option(min=1, max=4096, metavar="MIB", help="The largest object that is written.")
    ] = 200,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Test a storage for every promise that checkpoints rely on, and say in words what it cannot promise.

    The same tests that this library runs on its own storages (`ckptflow.testing.StoreContract`): racing creates have
    one winner, a reader never sees a part, a list shows what was written before it, names cannot leave the root, and so
    on; what is written is looked at behind the client's back. Takes a minute or two, and some 2 GB of traffic with
    the default size. The exit code is 1 if a promise is broken.

    \b
    Example:
      ckptflow doctor s3://bucket/scratch
    """
    from ckptflow.bench.folder import bench_folder

    there = storage_options(options, options_json, url=url)
    with bench_folder(url, there) as folder:
        store = folder.store
        store.create("create", memoryview(b"\n"))  # is_create_only is known from here on
        is_ignored = ignores_condition(store)
        why_no_copy = lacks_copy(store)
        findings = examine(
            folder.url,
            there,
            large_mib * 2**20,
            is_create_only=store.is_create_only,
            is_copying=not why_no_copy,
        )
        words = cannot_promise(store, is_ignored=is_ignored, why_no_copy=why_no_copy)
    if as_json:
        print_json(
            {
                "url": redact_url(url),
                "ok": all(finding.is_kept for finding in findings),
                "promises": [
                    {"promise": each.promise, "kept": each.is_kept, "seconds": each.seconds, "why": each.why or None}
                    for each in findings
                ],
                "cannot_promise": words,
            }
        )
    else:
        render(findings, words, is_ignored=is_ignored)
    if not all(finding.is_kept for finding in findings):
        raise typer.Exit(1)


class UrlBackend:
    """A folder of its own under a URL for each promise; looked at by plain file calls, or by fsspec's file system.

    That is asked without checksums as well: obstore does without, and so a server may that is used through it.
    """

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        from ckptflow.storage.clients import S3_SCHEMES, open_file_system, split_options
        from ckptflow.storage.opening import local_path

        self._url, self._options = url, storage_options
        self._path = local_path(url)
        scheme = url.partition("://")[0]
        plain, _, limit_s = split_options(storage_options)
        config = {**dict(plain.get("config_kwargs") or {}), **_NO_CHECKSUMS}
        ways = [plain, {**plain, "config_kwargs": config}] if scheme in S3_SCHEMES else [plain]
        self._systems: list[tuple[Any, str]] = []
        if self._path is None:
            self._systems = [open_file_system(url, scheme, options, stall_timeout_s=limit_s) for options in ways]

    def open(self) -> Store:
        from ckptflow.storage.opening import open_store

        return open_store(self._url, self._options)

    def raw_put(self, key: str, data: bytes) -> None:
        if self._path is None:
            self._ask(lambda fs, root: fs.pipe_file(f"{root}/{key}", data))
            return
        path = os.path.join(self._path, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def raw_get(self, key: str) -> bytes:
        if self._path is None:
            return bytes(self._ask(lambda fs, root: fs.cat_file(f"{root}/{key}")))
        with open(os.path.join(self._path, key), "rb") as file:
            return file.read()

    def raw_list(self) -> dict[str, int]:
        if self._path is None:
            base = self._systems[0][1].strip("/") + "/"
            found = self._ask(lambda fs, root: fs.find(root, detail=True))
            return {name.lstrip("/").removeprefix(base): int(info["size"]) for name, info in found.items()}
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(self._path) for name in names]
        return {os.path.relpath(path, self._path): os.path.getsize(path) for path in paths}

    def _ask(self, ask: Callable[[Any, str], Any]) -> Any:
        for system in self._systems[:-1]:
            with contextlib.suppress(OSError):
                return ask(*system)
        return ask(*self._systems[-1])


def promises(contract: type) -> dict[str, Callable[[Any, Any], None]]:
    """The tests of a contract by the promise that their name says, in the order in which they stand."""
    members = [member for kind in contract.__mro__ for member in vars(kind).items()]
    tests = [(name, test) for name, test in members if name.startswith("test_") and inspect.isfunction(test)]
    return {name.removeprefix("test_").replace("_", " "): test for name, test in tests}


def examine(
    url: str,
    storage_options: dict[str, Any],
    large_bytes: int,
    *,
    is_create_only: bool = True,
    is_copying: bool = True,
) -> list[Finding]:
    """Tries every promise, each in an empty folder of its own, whatever became of those before.

    A storage that says that it is not `is_create_only` is not asked to be, nor to copy what it does not copy.

    Raises `StorageUnavailableError` where the storage goes away meanwhile.
    """
    from ckptflow.testing import CopyContract, StoreContract

    contract = StoreContract()
    contract.large_bytes = large_bytes
    contract.replaced_bytes = min(contract.replaced_bytes, large_bytes)
    contract.copied_bytes = min(contract.copied_bytes, large_bytes)
    found = []
    tests = promises(StoreContract)
    if not is_create_only:
        del tests[_EXCLUSIVE]
    if not is_copying:
        tests = {promise: test for promise, test in tests.items() if not hasattr(CopyContract, test.__name__)}
    with bar("trying", is_long=True) as progress:
        for number, (promise, test) in enumerate(tests.items()):
            progress.say(f"trying: {promise}", number, len(tests))
            start_s = time.monotonic()
            try:
                test(contract, UrlBackend(f"{url}/{number:02d}", storage_options))
                why = ""
            except StorageUnavailableError:
                raise
            except Exception as error:  # whatever a storage does
                why = redact(str(error)) or type(error).__name__
            found.append(Finding(promise, not why, round(time.monotonic() - start_s, 3), why))
    return found


def ignores_condition(store: Store) -> bool:
    """Whether a storage that has taken the condition of a create, for "create", takes a second one as well."""

    if not store.is_create_only:
        return False
    try:
        store.create("create", memoryview(b"again\n"))
    except ObjectExistsError:
        return False
    return True


def lacks_copy(store: Store) -> str:
    """Why nothing is copied inside this storage; "" where it is, in the version that was asked for alone."""
    if not can_copy(store):
        return "only disks with hard links, S3 and Google Cloud Storage are asked to"
    try:
        version = store.put("source", memoryview(b"first\n"))
        if version is None:
            return "it does not return the version of what was written"
        store.copy("source", "copy", version)
        store.put("source", memoryview(b"other\n"))
        with contextlib.suppress(ObjectChangedError):
            store.copy("source", "copy", version)
            return _COPIES_ANYTHING
    except StorageError as error:
        return redact(str(error))
    return ""


def cannot_promise(store: Store, *, is_ignored: bool = False, why_no_copy: str = "") -> list[str]:
    """In words, what this storage lacks, and what nobody can try in a minute."""
    words = []
    if is_ignored:
        words.append(
            "that only one of two jobs continues if they start on one root at the same moment: this storage ignores "
            "the condition of a create (If-None-Match) and replaces what is there. A job finds that out when it "
            "claims its "
            "root, says so in its log, and continues as on a storage without exclusive create; make sure that there "
            "is never a second one"
        )
    if not store.is_create_only:
        words.append(
            "that only one of two jobs continues if they start on one root at the same moment: this storage has no "
            "exclusive create; make sure that there is never a second one"
        )
    if why_no_copy:
        words.append(
            "that what has not changed is not sent again: unchanged shards are written again, since nothing is copied "
            f"inside this storage: {why_no_copy}"
        )
    return [*words, *_CANNOT_SEE]


def render(findings: Sequence[Finding], words: Sequence[str], *, is_ignored: bool = False) -> None:
    """Prints a line for each promise, then what could not be tried."""
    console = make_console()
    for each in findings:
        mark = "kept  " if each.is_kept else "BROKEN"
        console.print(f"{mark}  {each.seconds:6.1f} s  {each.promise}", style="green" if each.is_kept else "red")
        if each.why:
            console.print(f"        {printable(each.why)}", soft_wrap=True)
    broken = [each for each in findings if not each.is_kept]
    if broken and is_ignored and all(each.promise == _EXCLUSIVE or _NOT_REFUSED in each.why for each in broken):
        console.print(
            f"\n{len(broken)} of {len(findings)} promises are broken, since this storage ignores the condition of a "
            "create: saves, restores and prune work for one job at a time on a root, and two jobs on one can replace "
            "each other's files.",
            style="red",
            soft_wrap=True,
        )
    elif broken:
        console.print(
            f"\n{len(broken)} of {len(findings)} promises are broken: do not keep checkpoints here.", style="red"
        )
    else:
        console.print(f"\nAll {len(findings)} promises were kept.")
    console.print("This cannot show:")
    for line in words:
        console.print(f"  - {line}", soft_wrap=True)
