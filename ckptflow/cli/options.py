"""What every verb takes: the URL, storage options, `--json`."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from ckptflow.cli import completion
from ckptflow.printable import printable, printable_json
from ckptflow.storage.redaction import redact, redact_url

Url = Annotated[str, typer.Argument(metavar="URL", help="A run's root.", show_default=False)]
UrlOrFolder = Annotated[
    str, typer.Argument(metavar="URL", help="A run's root, or one checkpoint's folder in it.", show_default=False)
]
_SHARED = "CKPTFLOW_STORAGE_OPTIONS"
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        metavar="KEY=VALUE",
        help="An option for the storage; may be repeated. A dot reaches inside: client_kwargs.endpoint_url=http://… "
        "VALUE is true, false, null, a JSON object or list, otherwise a string.",
        show_default=False,
    ),
]
OptionsJson = Annotated[
    str | None,
    typer.Option(
        "--storage-options",
        metavar="JSON",
        envvar=_SHARED,
        help="All options for the storage as one JSON object. Credentials are safer in the environment: a command line "
        "can be seen by others on the machine.",
        show_default=False,
    ),
]


def _of_other_end(end: str) -> Any:
    return typer.Option(
        f"--{end.lower()}-options",
        metavar="JSON",
        help=f"Options for {end}'s storage. Default: those of URL, if both are the same kind of storage.",
        show_default=False,
    )


DestinationOptions = Annotated[str | None, _of_other_end("DESTINATION")]
SourceOptions = Annotated[str | None, _of_other_end("SOURCE")]
OtherOptions = Annotated[str | None, _of_other_end("OTHER")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, in the shape that docs/cli.md gives.")]
Step = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="The checkpoint of this step.", show_default=False, autocompletion=completion.steps
    ),
]

_YEAR_S = 365 * 86_400


def seconds(*names: str, **how: Any) -> Any:
    """An option that takes seconds: not infinitely many, nor NaN, nor more than a clock can wait for."""

    def check(value: float | None) -> float | None:
        if value is not None and not value <= _YEAR_S:
            raise typer.BadParameter(f"{value} is not a number of seconds of at most a year")
        return value

    return typer.Option(*names, callback=check, **{"metavar": "SECONDS"} | how)


_WORDS = {"true": True, "false": False, "null": None}


def storage_options(
    pairs: list[str] | None, text: str | None, name: str = "--storage-options", *, url: str = ""
) -> dict[str, Any]:
    """The storage options of a command line, `-o` over the JSON of the option `name`.

    Raises ValueError for what is malformed, without showing any of it: it may hold a secret; and for `-o` with a `url`
    on a disk, which has none. What the environment variable has for other storages is left out, and a note says so.
    """
    from ckptflow.storage.opening import local_path

    options: dict[str, Any] = {}
    if text:
        parsed = _parse_json(text, name)
        if not isinstance(parsed, dict):
            raise ValueError(f"{name} is not a JSON object")
        options = parsed
        if text == os.environ.get(_SHARED):
            _leave_out_others(options, url)
    for number, pair in enumerate(pairs or [], 1):
        key, equals, value = pair.partition("=")
        *outer, last = key.split(".")
        if not equals or not all((*outer, last)):
            raise ValueError(f"-o number {number} is not of the form KEY=VALUE")
        inner = options
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"-o {key}: {part} was given a value of its own before")
        if value in _WORDS:
            inner[last] = _WORDS[value]
        else:
            inner[last] = _parse_json(value, f"-o {key}") if value[:1] in ("{", "[") else value
    if pairs and url and local_path(url) is not None:
        names = ", ".join(pair.partition("=")[0] for pair in pairs)
        raise ValueError(f"-o {names}: {redact_url(url)} is on a disk, and that has no options")
    return options


def _leave_out_others(options: dict[str, Any], url: str) -> None:
    if "://" not in url:
        return
    from ckptflow.storage.clients import options_for_others

    others = options_for_others(url, options)
    for name in others:
        del options[name]
    if others:
        names = ", ".join(map(redact, others))
        typer.echo(printable(f"{redact_url(url)}: not used of {_SHARED}: {names}"), err=True)


def other_options(text: str | None, name: str, options: dict[str, Any], url: str, other: str) -> dict[str, Any]:
    """The storage options for a command's other end: the JSON of the option `name`, else those of `url` where both have
    the same scheme and are mostly the same storage."""
    if text:
        return storage_options(None, text, name)
    return options if _scheme(url) == _scheme(other) else {}


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is not JSON") from None  # the parser's message would show a part of it


def print_json(value: Any, indent: int = 2) -> None:
    """Prints one JSON document, in UTF-8 whatever the locale; on one line if `indent` is -1.

    What is not UTF-8 in a name on a disk is shown as in text: `\\udcff`.
    """
    import msgspec

    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        data = msgspec.json.encode(_in_utf8(msgspec.to_builtins(value)))
    text = msgspec.json.format(data, indent=indent).decode()
    sys.stdout.flush()
    sys.stdout.buffer.write(printable_json(text).encode() + b"\n")
    sys.stdout.flush()


def _in_utf8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_in_utf8(key): _in_utf8(each) for key, each in value.items()}
    return [_in_utf8(each) for each in value] if isinstance(value, (list, tuple)) else value
