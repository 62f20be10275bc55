"""What must not be seen: the credentials in URLs, options and the environment, and the errors that show them."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from ckptflow.errors import LEAVING, CkptflowError
from ckptflow.printable import printable
from ckptflow.storage import faults, redaction

_SECRET_NAMES = ("key", "secret", "token", "pass", "credential", "sas", "auth", "user", "sig", "code", "sess")
_PARAMETER = re.compile(r";([^/;#]+)")
_TOKEN_KINDS = ("anon", "google_default", "cloud", "cache", "browser")  # gcsfs's words for where a token comes from
_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SIGNATURE_CHARACTERS = 16  # and more: a value of a query that long may be what lets its bearer in
_LEFT_PLAIN = ("", "/", "+", "=", "/+", "/=", "+=", "/+=")  # characters of base64, and of keys
_WORD_CHARACTERS = 4  # what is shorter stands in any text


def secrets_of(url: str, storage_options: dict[str, Any]) -> Iterator[str]:
    """Every text among the options, the URL and the environment that must not be seen, in each spelling that it has."""
    found = [*_in_url(url), *(os.environ[name] for name in _ENVIRONMENT if os.environ.get(name))]
    for secret in (*found, *_in_options(storage_options, is_secret=False)):
        yield from sorted({secret, *_spellings(secret)} - {""})


def may_be_chained(error: BaseException, secrets: Iterable[str]) -> bool:
    """Whether a traceback may show the error: no secret is in it, and nothing that a terminal would obey."""
    lines = (line for link in _in_traceback(error) for line in _shown_of(link).split("\n"))
    return all(line.isprintable() for line in lines) and not tells_secrets(error, secrets)


def tells_secrets(error: BaseException, secrets: Iterable[str]) -> bool:
    """Whether the error, or what a traceback shows with it, tells a secret, or a user or a query of a URL."""
    known = tuple(secrets)
    for link in _in_traceback(error):
        texts = (_shown_of(link), _repr_of(link))
        if any(secret in text for secret in known for text in texts):
            return True
        if any(redaction.redact(text) != text for text in texts):
            return True
    return False


def _repr_of(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # its own code
        return ""


def _in_traceback(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the members of groups among these."""
    waiting, seen = [error], set[int]()  # what is raised out of a group has that group as its context
    while waiting:
        for link in faults.chain(waiting.pop()):
            if id(link) not in seen:
                seen.add(id(link))
                yield link
                waiting += link.exceptions if isinstance(link, BaseExceptionGroup) else ()


def _shown_of(link: BaseException) -> str:
    """What a traceback shows of one of them: its class, its text, its notes, of a syntax error also a line."""
    return "".join(traceback.format_exception_only(link))


def for_log(error: BaseException) -> BaseException:
    """What a log or a traceback may show of an error: itself, or, where it tells a user or a query of a URL, or holds
    what a terminal would obey, another of its text without, which has its stack and nothing that it was raised from."""
    if may_be_chained(error, ()):
        return error
    text = redaction.redact(f"{type(error).__name__}: {faults.text_of(error)}")
    shown = RuntimeError(printable(text))
    return shown.with_traceback(error.__traceback__)


@contextmanager
def opening(url: str, storage_options: dict[str, Any]) -> Iterator[None]:
    """Python's own errors as they are, a client's as `StorageError`; what would tell a secret is said without it."""
    try:
        yield
    except (CkptflowError, *LEAVING):
        raise
    except Exception as error:
        secrets = list(secrets_of(url, storage_options))
        is_pythons = type(error).__module__ == "builtins"
        if is_pythons and not tells_secrets(error, secrets):
            raise
        where = redaction.redact_url(url)
        if is_pythons and isinstance(error, ValueError):
            raise ValueError(f"{where}: cannot open: {faults.text_of(error, secrets)}") from None
        names = frozenset(option_names(storage_options))
        raise faults.from_client_error(error, "open", where, secrets, options=names) from None


def option_names(options: Mapping[str, Any]) -> Iterator[str]:
    """The names of options, also of those in options that are maps."""
    for name, value in options.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from option_names(value)


def _in_url(url: str) -> Iterator[str]:
    user = redaction.user_of(url)
    if user:
        name, _, password = user.partition(":")
        yield from (user, name, password)
        # Of a password that should have been encoded, clients take pieces for a host, a port or a path.
        yield from (piece for piece in re.split("[/?#@:]", password) if len(piece) >= _WORD_CHARACTERS)
    after = url.partition(f"{user}@")[2] if user else url
    path, _, query = after.partition("?")
    for name, value in (part.partition("=")[::2] for part in (*re.split("[&;#]", query), *_PARAMETER.findall(path))):
        is_secret = len(value) >= _WORD_CHARACTERS and any(word in name.lower() for word in _SECRET_NAMES)
        if is_secret or len(value) >= _SIGNATURE_CHARACTERS:
            yield value


def _in_options(value: Any, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _in_options(
                inner, is_secret=is_secret or any(part in str(name).lower() for part in _SECRET_NAMES)
            )
    elif isinstance(value, str) and ("/" in value or "@" in value):
        yield from _in_url(value)
    if is_secret and isinstance(value, str) and value not in _TOKEN_KINDS:
        yield value


def _spellings(secret: str) -> set[str]:
    """As it is told by whoever decodes it, or encodes it again: not all encode the same characters."""
    plain = unquote(secret)
    encoded = {quote(plain, safe=safe) for safe in _LEFT_PLAIN}
    lower = {re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text) for text in encoded}
    return {plain, unquote_plus(secret), quote_plus(plain), quote(secret, safe=""), *encoded, *lower}
