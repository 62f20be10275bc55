"""What lies at a name: a file, a folder, or a group of files; what is said of it, and in which order it is written."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from ckptflow.errors import ObjectExistsError, ObjectNotFoundError
from ckptflow.storage.redaction import HTTP_SCHEMES, redact_url

# What makes the files around it readable: a TensorFlow checkpoint, a folder of such, a SavedModel.
LAST = ("*.index", "checkpoint", "saved_model.pb", "saved_model.pbtxt")
_OF_MACOS = ("._", ".DS_Store", "__MACOSX")  # what it adds to archives and to disks that are not its own
_GROUP = re.compile(r"\.(index|data-\d{5}-of-\d{5})")


def is_in_group(name: str, base: str) -> bool:
    """Whether a file called `name` belongs to the prefix group `base`: `base.index`, `base.data-00000-of-00001`."""
    return name.startswith(base) and _GROUP.fullmatch(name[len(base) :]) is not None


def listed(folder: str) -> list[str]:
    """The names in a folder on this disk, sorted, but for what macOS adds."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(_OF_MACOS))


def folder_of(url: str) -> str:
    """The folder of what is at `url`. That of a web server keeps the query, which may be what opens the door."""
    if url.partition("://")[0] not in HTTP_SCHEMES:
        return url.rpartition("/")[0]
    parts = urlsplit(url)
    return parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]).geturl()


def in_folder(url: str, name: str) -> str:
    """Where the file `name` of the folder at `url` is."""
    if url.partition("://")[0] not in HTTP_SCHEMES:
        return os.path.join(url, name)
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path}/{quote(name)}").geturl()


def in_steps(keys: Iterable[str]) -> list[list[str]]:
    """The keys in the order to write them: first all that match no pattern of `LAST`, then each pattern's, in turn."""
    steps: list[list[str]] = [[] for _ in range(len(LAST) + 1)]
    for key in keys:
        name = key.rpartition("/")[2]
        matching = (number for number, pattern in enumerate(LAST, 1) if fnmatch.fnmatchcase(name, pattern))
        steps[next(matching, 0)].append(key)
    return steps


def not_found(url: str) -> ObjectNotFoundError:
    """What is raised where nothing is at `url`."""
    return ObjectNotFoundError(
        f"{redact_url(url)}: not found: no file, no folder, and no files named like this with "
        "'.index', '.data-…' appended; check the name"
    )


def exists(url: str) -> ObjectExistsError:
    """What is raised where something is at `url` that must not be replaced."""
    return ObjectExistsError(
        f"{redact_url(url)}: something is there already and was left as it is; name another place, or replace it "
        "with overwrite=True (--overwrite)"
    )
