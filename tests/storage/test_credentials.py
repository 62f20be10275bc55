"""No credential in a message, a traceback or a log: whatever holds it, however it is spelt, wherever a text is cut."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from ckptflow.errors import StorageError
from ckptflow.job import background
from ckptflow.storage import faults, redaction
from ckptflow.storage.credentials import for_log, may_be_chained, secrets_of, tells_secrets
from ckptflow.storage.opening import open_store
from ckptflow.storage.raw import raw_client

PASSWORDS = [
    "PLANTED",
    "PLA/NTED",
    "PLA#NTED",
    "PLA?NTED",
    "PLA@NTED",
    "PLA:NTED",
    "P/L?A#N@T:ED",
    "/PLANTED",
    "PLANTED?",
]


def pieces(password: str) -> list[str]:
    return [piece for piece in ("PLA", "NTED", "PLANTED", password) if piece in password]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "url", ["ftp://user:{}@host/path", "sftp://user:{}@host:22/a/b", "https://u:{}@h.org/x?sig=PLANTED"]
)
def test_a_password_may_hold_anything(url: str, password: str) -> None:
    full = url.format(password)
    for shown in (redaction.redact_url(full), redaction.redact(f"GET {full} failed"), redaction.redact(f"'{full}',")):
        assert not any(piece in shown for piece in pieces(password)), shown
        assert shown.removeprefix("GET ").lstrip("'").startswith(full.partition("://")[0] + "://")
    assert password in set(secrets_of(full, {}))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/run-7",
        "s3://bucket/user@example.org/run",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/run@7",
        "http://localhost:8080/@scope/x",
        "https://host.example.org:8443/a@b/c:d",
        "http://[::1]:8080/a@b",
        "abfs://container@account.dfs.core.windows.net/a",
        "memory://a b/ü",
        "/data/a@b:c?d#e",
    ],
)
def test_a_url_without_a_secret_stays_as_it_is(url: str) -> None:
    assert redaction.redact_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "Max retries exceeded with url: /b/k?sig=PLANTED (Caused by X)",
        "GET /b/k?X-Goog-Credential=me@PLANTED&sig=PLANTED",
        "https://host.org/b/k?X-Goog-Credential=me@PLANTED&sig=PLANTED",
        "https://host/b/k?c=me@PLANTED&sig=PLANTED",
        "https://host:9000/b/k?c=me@PLANTED&sig=PLANTED",
        "Authorization: Basic PLANTED",
        "'Authorization': 'Token PLANTED'",
    ],
)
def test_a_query_is_told_by_nobody(text: str) -> None:
    assert "PLANTED" not in redaction.redact(text)


@pytest.mark.parametrize("at", range(360, 420, 3))
def test_a_text_is_redacted_before_it_is_cut(at: int) -> None:
    """Wherever the cut falls: within a secret, or within what tells that it is one."""
    for tail in ("https://user:PLANTED-SECRET@host/x", "/k?signature=PLANTED-SECRET", "a PLANTED-SECRET b"):
        text = f"{'x' * (at - 9)} {tail}"
        error = faults.from_client_error(OSError(text), "read", "s3://b/k", ["PLANTED-SECRET"])
        assert "PLANT" not in str(error)
        assert len(str(error)) < 600


SECRET = "PLA/NT+ED=="


@pytest.mark.parametrize(
    "spelt", ["PLA/NT+ED==", "PLA%2FNT%2BED%3D%3D", "PLA/NT%2BED%3D%3D", "PLA%2FNT+ED==", "PLA%2fNT%2bED%3d%3d"]
)
def test_a_secret_in_another_spelling(spelt: str) -> None:
    for url, options in (("s3://b/k", {"secret": SECRET}), ("https://h/x?token=PLA%2FNT%2BED%3D%3D", {})):
        secrets = list(secrets_of(url, options))
        assert "NT" not in redaction.redact(f"refused: {spelt}.", secrets)
        cause = KeyError(f"refused: {spelt}.")
        assert tells_secrets(cause, secrets)
        outer = OSError("x")
        outer.__cause__ = cause
        assert tells_secrets(outer, secrets)


@pytest.mark.parametrize(
    "error",
    [
        OSError("https://host/x?v=1"),
        OSError("see https://user@host.org/x"),
        KeyError({"authorization": "abc"}),
        OSError("url: /x?a=b"),
    ],
)
def test_an_error_with_a_user_or_a_query_is_not_chained(error: Exception) -> None:
    assert tells_secrets(error, [])
    noted = OSError("x")
    noted.add_note(str(error))
    assert tells_secrets(noted, [])


def test_an_error_without_one_is() -> None:
    assert not tells_secrets(OSError("Connection refused by https://host.org:9000/bucket/key"), ["PLANTED"])


@pytest.mark.parametrize("password", PASSWORDS[1:4])
def test_a_client_that_cannot_be_made_tells_nothing(password: str) -> None:
    endpoint = f"http://user:{password}@127.0.0.1:9"
    options: dict[str, Any] = {"key": "k", "secret": "PLANTED-S", "client_kwargs": {"endpoint_url": endpoint}}
    for client in ("fsspec", "obstore"):
        with pytest.raises((ValueError, StorageError)) as raised:  # noqa: PT012 - when it is noticed differs
            store = open_store("s3://bucket/run", {**options, "client": client})
            store.store.list()  # type: ignore[attr-defined]
        shown = "".join(traceback.format_exception(raised.value))
        assert not any(piece in shown for piece in pieces(password) if len(piece) > 3), shown


def test_what_a_measurement_meets_is_told_like_any_error() -> None:
    options = {"key": "PLANTED-K", "secret": "PLANTED-S", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    for client in ("fsspec", "obstore"):
        options["client_kwargs"]["region_name"] = "x"  # type: ignore[index]
        raw = raw_client(open_store("s3://bucket/run", {**options, "client": client}))
        with pytest.raises(StorageError, match="s3://bucket/run/k: cannot write"):
            raw.put("k", memoryview(b"x"))


def test_what_a_log_shows_of_an_error() -> None:
    plain = OSError("Connection refused by https://host.org:9000/bucket/key")
    assert for_log(plain) is plain
    try:
        try:
            raise OSError("https://me:PLANTED@host/x")
        except OSError as error:
            raise ValueError("no") from error
    except ValueError as error:
        shown = for_log(error)
    assert str(shown) == "ValueError: no"
    assert "PLANTED" not in "".join(traceback.format_exception(shown))
    assert "test_what_a_log_shows" in "".join(traceback.format_exception(shown))


def with_note(note: str) -> Exception:
    error = OSError("no")
    error.add_note(note)
    return error


HARMFUL = [
    lambda what: OSError(f"the server said {what}"),
    lambda what: ExceptionGroup("both", [OSError("one"), OSError(what)]),
    lambda what: ExceptionGroup("both", [ExceptionGroup("inner", [with_note(what)])]),
    lambda what: BaseExceptionGroup(f"the group {what}", [OSError("one")]),
    with_note,
    lambda what: SyntaxError("no", ("file", 1, 1, what)),
    lambda what: type(f"Error{what}", (Exception,), {})("no"),
]


@pytest.mark.parametrize("make", HARMFUL)
@pytest.mark.parametrize("what", ["a \x1b[2J b", "a \x9b31m b", "a \u202e b", "a \r b", "password=PLANTED"])
@pytest.mark.parametrize("is_outermost", [True, False])
def test_a_log_shows_nothing_that_a_terminal_obeys(make: Any, what: str, is_outermost: bool) -> None:
    """Nor a secret: whatever of an error it is in that a traceback shows."""
    error = make(what)
    if not is_outermost:
        error, cause = ValueError("no"), error
        error.__cause__ = cause
    assert not may_be_chained(error, [])
    for shown in (for_log(error), background._as_failure(error)):
        text = "".join(traceback.format_exception(shown))
        assert "PLANTED" not in text
        assert all(line.isprintable() for line in text.split("\n")), text


@pytest.mark.parametrize("make", HARMFUL[:6])
def test_an_error_that_a_terminal_may_show_stays_as_it_is(make: Any) -> None:
    error = make("plain, of\ntwo lines")
    assert for_log(error) is error


def test_an_error_that_is_raised_out_of_its_group_is_looked_at_once() -> None:
    """It has the group as its context, and the group has it as a member."""
    for text, is_shown in (("plain", True), ("password=PLANTED", False)):
        try:
            try:
                raise ExceptionGroup("both", [OSError(text), OSError("two")])
            except ExceptionGroup as group:
                raise group.exceptions[0]  # noqa: B904
        except OSError as error:
            shown = for_log(error) is error
        assert shown == is_shown


def test_a_failure_in_the_background_tells_no_secret() -> None:
    failure = background._as_failure(RuntimeError("a panic at https://host/key?X-Amz-Signature=PLANTED"))
    assert "a panic at https://host/key?***" in str(failure)
    assert "PLANTED" not in "".join(traceback.format_exception(failure))
    plain = RuntimeError("a panic")
    assert background._as_failure(plain).__cause__ is plain


@pytest.mark.parametrize(
    "url", ["//user:PLANTED@host/run", "user:PLANTED@host/run", "https:/user:PLANTED@host", "FTP:user:PLANTED@host"]
)
def test_a_url_that_has_lost_something_is_no_folder_and_tells_nothing(url: str) -> None:
    with pytest.raises(ValueError, match="lacks") as raised:
        open_store(url)
    assert "PLANTED" not in str(raised.value)


def test_what_a_url_has_behind_a_semicolon_is_a_secret() -> None:
    assert "PLANTED" in set(secrets_of("https://host/a;jsessionid=PLANTED/b", {}))
    assert "PLANTED" in set(secrets_of("s3://b", {"client_kwargs": {"endpoint_url": "https:/me:PLANTED@host"}}))
