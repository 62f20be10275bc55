"""A credential process of AWS that says nothing is given up and ended, and what is still valid is used meanwhile."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ckptflow.errors import StorageUnavailableError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import RetryingStore
from tests.waiting import HANG_S, until

LIMIT_S = 1.5
CLIENTS = ["fsspec", "obstore"]
SILENT = "the credential process, or the service that gives them, did not answer"


class Helper:
    """A credential process that answers if it is told to, and else says nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "helper"
        program.write_text(
            f"#!/bin/sh\ncd {folder}\nif test -e answers; then rm answers; exec cat keys; fi\necho $$ >> silent\n"
            "exec sleep 600\n"
        )
        program.chmod(0o700)
        (folder / "config").write_text(
            f"[default]\ncredential_process = {program}\n[profile helped]\ncredential_process = {program}\n"
            "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/job\nsource_profile = helped\n"
        )
        self.last(1)

    def last(self, minutes: float) -> None:
        """How long the credentials last that it gives: with less than ten they are renewed before each use."""
        ends_at = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
        keys = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": ends_at}
        (self.folder / "keys").write_text(json.dumps(keys))

    def silent(self) -> list[int]:
        """All processes of it, so far, that have said nothing."""
        file = self.folder / "silent"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def read(self, client: str, *, answers: bool = False) -> str:
        """Reads from a server that is not there. The error; at first it answers, if it `answers`."""
        if answers:
            (self.folder / "answers").touch()

        def ask() -> None:
            store = open_store("s3://bucket/run", {"client": client, "stall_timeout_s": LIMIT_S})
            assert isinstance(store, RetryingStore)
            store.store.get("a/object", memoryview(bytearray(4)))

        with pytest.raises(StorageUnavailableError) as raised:
            ask()
        return str(raised.value)


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Helper:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    return Helper(tmp_path)


@pytest.mark.parametrize("profile", ["default", "role"])
@pytest.mark.parametrize("client", CLIENTS)
def test_one_that_says_nothing_is_given_up_and_ended(
    client: str, profile: str, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a role is assumed with what it gives. Each try has one, and none stays."""
    monkeypatch.setenv("AWS_PROFILE", profile)

    def was_asked() -> bool:
        assert SILENT in helper.read(client)
        return bool(helper.silent())  # a busy machine may not have begun it in that time

    until(was_asked, HANG_S)
    until(lambda: not [child for child in helper.silent() if Path(f"/proc/{child}").exists()], HANG_S)


@pytest.mark.parametrize("client", CLIENTS)
def test_one_that_says_nothing_when_credentials_are_renewed(client: str, helper: Helper) -> None:
    def was_asked() -> bool:
        assert SILENT in helper.read(client, answers=True)
        return bool(helper.silent())

    until(was_asked, HANG_S)
    until(lambda: not [child for child in helper.silent() if Path(f"/proc/{child}").exists()], HANG_S)


@pytest.mark.parametrize("client", CLIENTS)
def test_credentials_that_are_still_valid_are_used(
    client: str, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are renewed a quarter of an hour before they end: in vain."""
    monkeypatch.setattr("ckptflow.storage.aws_sessions._REQUESTS", HANG_S / LIMIT_S)

    def was_asked() -> bool:
        helper.last(14.5)
        before = len(helper.silent())
        error = helper.read(client, answers=True)
        was_silent = len(helper.silent()) > before  # not where a busy machine has ended the one that answers
        assert not (was_silent and SILENT in error)
        return was_silent and "onnect" in error

    until(was_asked, HANG_S)
