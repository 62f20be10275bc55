"""What a source of an import is, and how it becomes one file or folder that a reader of its format knows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.interop.formats import FORMATS, Format, by_content, by_name, by_suffix, handler, path_of
from ckptflow.interop.keras.backup import find_backup
from ckptflow.interop.untrusted.budget import one_source
from ckptflow.interop.untrusted.private_copy import check_regular, private_copy
from ckptflow.places.names import folder_of
from ckptflow.places.shown_as import private_folder, shown_as
from ckptflow.storage.opening import local_path
from ckptflow.storage.redaction import HTTP_SCHEMES, redact_url

_OF_CHECKPOINT = re.compile(r"(?P<prefix>.+)\.(?P<suffix>meta|index|data-\d{5}-of-\d{5})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """What a source turned out to be: its format, where it lies on this disk, what else is known of it."""

    format: Format
    path: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    is_private: bool = False  # fetched, unpacked or put together by us: nobody else can change it


@contextmanager
def identified(
    local: str, origin: str, name: str | None, source_options: dict[str, Any] | None, *, is_compared: bool
) -> Iterator[Source]:
    """Finds out what lies at `local`, which came from `origin`, by its format's `name` or its content; unpacks it, or
    puts it together, for as long as the block lasts.

    `is_compared`: it is then refused unless it has all that a model has, so that it may be a part as far as is known.
    Raises `UsageError` where the format cannot be told, or where it is a part of something.
    """
    notes: Mapping[str, Any] = {}
    chosen = by_name(name) if name is not None else by_content(local)
    place = origin.rstrip("/") if os.path.isdir(local) else folder_of(origin)
    if os.path.isdir(local) and (chosen is None or chosen.name in ("weights", "tf-checkpoint")):
        backup = find_backup(local)
        if backup is not None:
            format_name, local, notes = backup
            chosen = FORMATS[format_name]
    if os.path.isdir(os.path.join(local, "lineage")):
        raise UsageError(
            f"{redact_url(origin)} is a run of ckptflow: restore from it (restore_latest(partial=True, rename=…) for a "
            "warm start), or export it"
        )
    is_prefix = chosen is not None and chosen.name == "tf-checkpoint" and os.path.isfile(f"{local}.index")
    if not os.path.isdir(local) and not is_prefix:  # a file of a prefix's own name is none of the checkpoint's
        check_regular([local], local)
        if os.path.isfile(local) and not os.path.getsize(local):
            raise UsageError(f"{redact_url(origin)} is an empty file: was it written, or fetched, to its end?")
    if chosen is None:
        raise UsageError(
            f"{redact_url(origin)}: neither its name nor its content identifies the format; pass format= (--format), "
            "one of " + ", ".join(entry.name for entry in FORMATS.values() if entry.is_importable)
        )
    shown = redact_url(origin)
    _check_is_importable(chosen, shown)
    given = local
    with private_folder("ckptflow-source-", shown) as folder:
        if chosen.joiner is not None:
            local = handler(chosen.joiner)(local, place, folder, source_options, is_compared=is_compared)
        is_unpacked = os.path.isfile(given) and os.path.isdir(local)  # the rest is measured as it lies
        packed = one_source(os.path.getsize(given)) if is_unpacked else nullcontext()
        is_private = local_path(origin) is None or local != given
        is_copied = chosen.is_checked_first and not is_private and os.path.isfile(local)
        made = shown_as(local, shown) if local != given else nullcontext()
        with packed, made, private_copy(local) if is_copied else nullcontext(local) as path:
            yield Source(chosen, path, notes, is_private=is_private or is_copied)


def check_named(origin: str, name: str | None) -> None:
    """Raises where a source's name, or the `name` of its format, tells that no run can start from it, before anything
    is fetched.

    `UsageError` for one of the files of a checkpoint of TensorFlow's, as TF1's tools name them; elsewhere also for its
    index, of which nothing else comes along. `UnsupportedStateError` for a format that nothing reads.
    """
    found, shown = _OF_CHECKPOINT.fullmatch(path_of(origin)), redact_url(origin)
    is_web = origin.partition("://")[0] in HTTP_SCHEMES
    if found is not None and not (found["suffix"] == "index" and local_path(origin) is not None):
        what = f"{shown} is one file of a TensorFlow checkpoint; name the checkpoint by its prefix"
        if is_web:
            raise UsageError(f"{what}, once all of its files are in one folder: a web server does not list them")
        whole = urlsplit(origin)._replace(query="", fragment="").geturl() if "://" in origin else origin
        raise UsageError(f"{what}: {redact_url(whole.removesuffix('.' + found['suffix']))}")
    of_file = by_suffix(origin) if is_web else None  # elsewhere it may be a folder, which its content tells
    chosen = by_name(name) if name is not None else of_file
    if chosen is not None:
        _check_is_importable(chosen, shown)


def _check_is_importable(chosen: Format, shown: str) -> None:
    if not chosen.is_importable:
        raise UnsupportedStateError(f"{shown}: a run cannot start from the format {chosen.name!r}")
