"""What botocore has on the disk about S3: read and parsed by the first store of a process, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from ckptflow.errors import StorageError
from ckptflow.storage.opening import open_store
from tests.servers import Server

CLIENTS = ["fsspec", "obstore"]


def save(server: Server, client: str, **more: Any) -> None:
    store = open_store("s3://ckptflow-tests/aws-data", {**server.storage_options, "client": client, **more})
    store.put("a", memoryview(b"x"))
    store.close()


def files_read(patch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is read from now on."""
    load, read = JSONFileLoader.load_file, list[str]()

    def noted(self: JSONFileLoader, path: str) -> Any:
        found = load(self, path)
        if found is not None:
            read.append(path)
        return found

    patch.setattr(JSONFileLoader, "load_file", noted)
    return read


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_parsed_once(client: str, moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    save(moto, client)
    read = files_read(monkeypatch)
    save(moto, client)
    assert read == []


@pytest.mark.parametrize("client", CLIENTS)
def test_a_users_own_descriptions_are_looked_for(
    client: str, moto: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(moto, client)
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    (tmp_path / "endpoints.json").write_text("{")
    with pytest.raises(Exception, match="Expecting property name"):
        save(moto, client)


def test_a_profile_that_is_not_there_is_told_by_the_first_request(
    moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match=r"\(nobody\)"):
        save(moto, "fsspec")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_profile_that_is_not_there_is_said_in_words(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match=r"s3://bucket/run.* profile \(nobody\)"):  # fsspec asks when it is used
        open_store("s3://bucket/run", {"client": client}).list("")
