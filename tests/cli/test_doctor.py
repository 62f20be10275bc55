"""`ckptflow doctor`: the contract on a stranger's storage, broken promises found and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckptflow.bench.folder import FOLDER_PREFIX
from ckptflow.cli import doctor
from ckptflow.cli.doctor import promises
from ckptflow.errors import StorageAccessError
from ckptflow.storage import opening
from ckptflow.storage.local import LocalStore
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import Retries
from ckptflow.testing import FaultyStore, MemoryStore, StoreContract
from tests.cli.runner import Runner, run_alone
from tests.servers import Server, s3_client
from tests.storage import lacking
from tests.storage.proxy import faulty_proxy
from tests.storage.strict import SCHEME, StrictFileSystem

SMALL = ("--large-mib", "2")
FEW = (doctor._EXCLUSIVE, "create leaves what is there", "put replaces", "delete")
COPIES = "a copy is of one version"
COUNT = len(promises(StoreContract))
# Each promise is asked for, by fewer requests: `tests/storage/test_contract.py` asks the same server by all of them.
FEWER = """
from ckptflow.cli import main
from ckptflow.testing import StoreContract
StoreContract.race_rounds, StoreContract.many_objects = 1, 50
main()
"""


def test_a_disk_keeps_them_all(runner: Runner, root: str) -> None:
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    ran = runner("doctor", root, *SMALL, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert set(ran.json) == {"url", "ok", "promises", "cannot_promise"}
    assert len(ran.json["promises"]) == COUNT > 20
    assert all(set(each) == {"promise", "kept", "seconds", "why"} for each in ran.json["promises"])
    assert all(each["kept"] and each["why"] is None for each in ran.json["promises"])
    assert "racing creators have exactly one winner" in [each["promise"] for each in ran.json["promises"]]
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before
    assert not list(Path(root).glob(FOLDER_PREFIX + "*"))


def test_a_bucket(seaweedfs: Server) -> None:
    seaweedfs.make_bucket("doctor")
    options = json.dumps({**seaweedfs.storage_options, "client": "obstore", "stall_timeout_s": "60"})
    ran = run_alone("doctor", "s3://doctor/place", *SMALL, script=FEWER, CKPTFLOW_STORAGE_OPTIONS=options)
    assert ran.code == 0, ran.out + ran.err
    assert f"All {COUNT} promises were kept." in ran.out
    assert "This cannot show:" in ran.out
    assert seaweedfs.storage_options["secret"] not in ran.out
    assert s3_client(seaweedfs).list_objects_v2(Bucket="doctor").get("KeyCount") == 0


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_bucket_that_lacks_what_can_be_done_without(
    seaweedfs: Server, runner: Runner, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {name: test for name, test in doctor.promises(StoreContract).items() if name in (*FEW, COPIES)}
    monkeypatch.setattr(doctor, "promises", lambda contract: dict(asked))
    with faulty_proxy(seaweedfs) as proxy:
        proxy.rules = [
            lacking.no_bulk_delete(lacking.NO_BULK_DELETE[0]),
            lacking.no_condition(lacking.UNKNOWN_CONDITIONS[0]),
            lacking.no_checksums(lacking.UNKNOWN_CHECKSUMS[0]),
            lacking.no_copies(lacking.NO_COPIES[0]),
        ]
        kwargs = {**seaweedfs.storage_options["client_kwargs"], "endpoint_url": proxy.endpoint}
        options: dict[str, Any] = {**seaweedfs.storage_options, "client": client, "client_kwargs": kwargs}
        if client == "fsspec":
            monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", json.dumps(options))
            ran = runner("doctor", "s3://ckptflow-tests/doctor", *SMALL)
            assert ran.code == 3
            assert "request_checksum_calculation" in ran.err
            assert "response_checksum_validation" in ran.err
            settings = ("request_checksum_calculation", "response_checksum_validation")
            options["config_kwargs"] = dict.fromkeys(settings, "when_required")
        monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", json.dumps(options))
        ran = runner("doctor", "s3://ckptflow-tests/doctor", *SMALL, "--json")
    assert ran.code == 0, ran.out + ran.err
    assert ran.json["ok"]
    assert len(ran.json["promises"]) == len(FEW) - 1
    assert "no exclusive create" in ran.json["cannot_promise"][0]
    assert "unchanged shards are written again" in ran.json["cannot_promise"][1]
    left = s3_client(seaweedfs).list_objects_v2(Bucket="ckptflow-tests", Prefix="doctor/")
    assert left.get("KeyCount") == 0


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_bucket_whose_key_is_disabled(
    seaweedfs: Server, runner: Runner, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's word, exit code 3, and no write that is sent again."""
    asked = dict(list(doctor.promises(StoreContract).items())[:2])
    monkeypatch.setattr(doctor, "promises", lambda contract: dict(asked))
    with faulty_proxy(seaweedfs) as proxy:
        proxy.rules = [lacking.no_writes(lacking.PERMANENT[0])]
        kwargs = {**seaweedfs.storage_options["client_kwargs"], "endpoint_url": proxy.endpoint}
        options = {**seaweedfs.storage_options, "client": client, "client_kwargs": kwargs}
        monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", json.dumps(options))
        ran = runner("doctor", "s3://ckptflow-tests/doctor-disabled", *SMALL)
    assert ran.code == 3, ran.out + ran.err
    assert "is disabled" in ran.err
    writes = [line for line in proxy.requests if line.startswith("PUT")]
    assert len(writes) == len(set(writes))


def test_a_broken_promise_is_told_in_words(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(LocalStore):
        """Takes create for put."""

        def create(self, key: str, data: memoryview) -> None:
            self.put(key, data)

    monkeypatch.setattr(opening, "open_store", lambda url, options=None: Careless(url))
    monkeypatch.setattr("ckptflow.bench.folder.open_store", lambda url, options=None: Careless(url))
    ran = runner("doctor", str(tmp_path), *SMALL)
    assert ran.code == 1
    assert "BROKEN" in ran.out
    assert "do not keep checkpoints here" not in ran.out
    assert "3 of" in ran.out
    assert "work for one job at a time" in ran.out
    assert "If-None-Match" in ran.out
    line = next(line for line in ran.out.splitlines() if "create leaves what is there" in line)
    assert line.startswith("BROKEN")
    assert not list(tmp_path.iterdir())


def test_one_that_breaks_more_than_creates_is_no_place(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worse(LocalStore):
        """Takes create for put, and keeps what is deleted."""

        def create(self, key: str, data: memoryview) -> None:
            self.put(key, data)

        def delete(self, keys: Any) -> None:
            if "bench" in self.url and not any("delete" in key or key in ("a", "b") for key in keys):
                super().delete(keys)

    asked = {name: test for name, test in doctor.promises(StoreContract).items() if name in FEW}
    monkeypatch.setattr(doctor, "promises", lambda contract: dict(asked))
    monkeypatch.setattr(opening, "open_store", lambda url, options=None: Worse(url))
    ran = runner("doctor", str(tmp_path), *SMALL)
    assert ran.code == 1
    assert "do not keep checkpoints here" in ran.out


def test_what_cannot_be_reached_has_broken_no_promise(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retries.__init__, "__defaults__", (1, 1.0, 0.1))
    options = ["-o", "key=k", "-o", "secret=s", "-o", "client_kwargs.endpoint_url=http://127.0.0.1:9"]
    ran = runner("doctor", "s3://bucket/place", *options, "-o", "client_kwargs.region_name=x", *SMALL)
    assert ran.code == 4
    assert "BROKEN" not in ran.out


def test_a_storage_without_exclusive_create_is_named(runner: Runner) -> None:
    ran = runner("doctor", "dummyfs://somewhere", *SMALL)
    assert ran.code == 2
    words = doctor.cannot_promise(_Store(is_create_only=False))  # type: ignore[arg-type]
    assert "no exclusive create" in words[0]
    assert "no exclusive create" not in " ".join(doctor.cannot_promise(_Store(is_create_only=True)))  # type: ignore[arg-type]


def test_why_nothing_is_copied(tmp_path: Path, moto: Server) -> None:
    """Where it is, in the version that was asked for: ""."""

    class CopiesAnything(MemoryStore):
        def copy(self, source_key: str, key: str, version: str) -> str | None:
            return self.put(key, memoryview(self.objects[source_key]))

    ignoring = open_store("s3://ckptflow-tests/doctor-copies", {**moto.storage_options, "client": "fsspec"})
    assert doctor.lacks_copy(MemoryStore()) == doctor.lacks_copy(LocalStore(str(tmp_path))) == ""
    for store in (CopiesAnything(), ignoring):
        assert "ignores the condition" in doctor.lacks_copy(store)
    assert "hard links" in doctor.lacks_copy(open_store("memory://doctor-copies"))
    refusing = FaultyStore(MemoryStore())
    refusing.fail("copy", StorageAccessError("may not copy"))
    assert doctor.lacks_copy(refusing) == "may not copy"


class _Store:
    def __init__(self, *, is_create_only: bool) -> None:
        self.is_create_only = is_create_only


def test_credentials_of_the_url_reach_every_promise(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StrictFileSystem, "given", given := list[dict[str, Any]]())
    monkeypatch.setattr(doctor, "promises", lambda contract: {name: promises(contract)[name] for name in FEW})
    ran = runner("doctor", f"{SCHEME}://me:planted-word@host/place", *SMALL, "-o", f"base={tmp_path}", "--json")
    assert {(each["username"], each["password"]) for each in given} == {("me", "planted-word")}
    assert [each["promise"] for each in ran.json["promises"] if each["kept"]] == list(FEW)[1:]
    assert "planted-word" not in ran.out + ran.err
