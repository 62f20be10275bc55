"""What Keras 3 saved as several files, made the one file that the readers here know: sharded weights, and a `.keras`
that was saved with `zipped=False`."""

from __future__ import annotations

import logging
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any, BinaryIO

import h5py
import msgspec

from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    UnsupportedStateError,
    UsageError,
)
from ckptflow.interop.keras.hdf5 import check_file, damage, opened, text_of
from ckptflow.interop.untrusted.hdf5_probe import WEIGHTS_MEMBER, check_survives
from ckptflow.interop.untrusted.indexes import read_index
from ckptflow.interop.untrusted.private_copy import check_filled, measured_bytes, open_regular, private_copy
from ckptflow.places.files import fetched
from ckptflow.places.names import in_folder, listed
from ckptflow.places.room import ensure_room
from ckptflow.storage.faults import os_errors
from ckptflow.storage.local_calls import opened_folder
from ckptflow.storage.redaction import redact_url

logger = logging.getLogger("ckptflow")

INDEX_SUFFIX = "weights.json"  # "best_weights.json" as well
_SHARD = re.compile(r"(?P<base>.+)_\d{5,}\.weights\.h5", re.DOTALL)
_NPZ = "model.weights.npz"
_CONFIG = "config.json"
_COPY_BYTES = 2**20
_MAX_INDEX_BYTES = 2**24  # of a hundred thousand layers
_MEMBERS = ("metadata.json", _CONFIG, WEIGHTS_MEMBER, _NPZ)


class _WeightIndex(msgspec.Struct):
    weight_map: dict[str, str | list[str]]


def as_one_file(
    local: str, place: str, folder: str, source_options: dict[str, Any] | None, *, is_compared: bool
) -> str:
    """What Keras saved as several files as one of them in `folder`; the path as it is where it is one.

    `place` is the folder or URL where it came from. Raises `UsageError` for one of several files, which is a part, and
    `StorageError` where that cannot be told. Only if access to the index is refused, as with a URL that is signed for
    one file, and all of the weights will be asked for (`is_compared`), it is taken with a warning. So is, where they
    will not be asked for, what is called as a part and has no index: it may be a part, or have the number of an epoch.
    """

    def beside(name: str, given: Callable[[str], AbstractContextManager[str]] = nullcontext) -> Any:
        path = os.path.join(os.path.dirname(local), name)
        return given(path) if os.path.isfile(path) else fetched(in_folder(place, name), source_options)

    if os.path.isdir(local) and is_unzipped(os.listdir(local)):
        target = os.path.join(folder, "model.keras")
        zip_model(local, target)
        return target
    if local.endswith(INDEX_SUFFIX):
        target = os.path.join(folder, "whole.weights.h5")
        merge_shards(local, target, lambda name: beside(name, private_copy))
        return target
    name = os.path.basename(local)
    guessed = _indexes_of(name)
    if not guessed:
        return local
    where = redact_url(in_folder(place, name))
    may_be_part = f"{where} may have a part of the weights alone, as its name has a number, and"
    here = [each for each in listed(os.path.dirname(local) or ".") if each.endswith(INDEX_SUFFIX)]
    for index in dict.fromkeys([*here, *guessed]):
        try:
            with beside(index) as path:
                is_part = name in shards_named(path)
        except ObjectNotFoundError:
            continue
        except StorageError as error:
            told = f"{may_be_part} whether {index} beside it says so cannot be told: {error}."
            if is_compared and isinstance(error, StorageAccessError):
                logger.warning(
                    "%s It is read, since it must have all weights of model=; an optimizer may be lacking", told
                )
                return local
            raise type(error)(
                f"{told} If it has all of them, fetch it under a name without a number, or give model= and not partial="
            ) from error
        if is_part:
            raise UsageError(f"{where} has a part of the weights of {index}: name that")
    if not is_compared:  # the number may be that of an epoch
        logger.warning(
            "%s there is no index beside it (*%s) that tells. If it is a part, put all parts and the index into one "
            "folder, and name the index",
            may_be_part,
            INDEX_SUFFIX,
        )
    return local


def shards_named(path: str) -> list[str]:
    """As `shards_in`, and none where it is no index: folders and web servers may have anything under its name."""
    try:
        return shards_in(path)
    except (CorruptCheckpointError, UsageError):
        return []


def is_unzipped(names: Iterable[str]) -> bool:
    """Whether a folder of these files is a model as Keras saves it with `zipped=False`."""
    found = set(names)
    return _CONFIG in found and not found.isdisjoint((WEIGHTS_MEMBER, _NPZ))


def zip_model(folder: str, target: str) -> None:
    """Packs such a folder as the `.keras` file that it would be.

    Its config, metadata and weights may be links, as in other folders. Raises `UsageError` for a link below `assets`
    to what lies elsewhere, also one that comes meanwhile; `StorageFullError` where there is no room for it.
    """
    with damage(folder):
        measured = [measured_bytes(file) for _, file in _inside(folder) if file is not None]
        check_filled(measured, folder)
        left = sum(size_bytes for size_bytes, _ in measured)
        ensure_room(os.path.dirname(target), left)
        with zipfile.ZipFile(target, "w") as archive:
            for name, file in _inside(folder):
                if file is None:
                    archive.mkdir(name)
                    continue
                size = os.fstat(file.fileno()).st_size
                left -= size
                if left < 0:
                    raise CorruptCheckpointError(f"{folder}: {name} became longer while it was read")
                with archive.open(name, "w", force_zip64=True) as member:
                    _copy(file, member, size)


def _inside(folder: str) -> Iterator[tuple[str, BinaryIO | None]]:
    """The files of a model, open for as long as they are the last that was given, and its folders."""
    root = os.path.realpath(folder)
    for above, folders, names, place in os.fwalk(root):
        if above == root:
            folders[:] = [name for name in folders if name == "assets"]
            names = [name for name in names if name in (*_MEMBERS, "assets")]
        folders.sort()
        for name in sorted((*names, *folders)):
            path = os.path.join(above, name)
            inside = os.path.relpath(path, root)
            if stat.S_ISDIR(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
                yield inside, None
                continue
            with os_errors("read", path):
                file = open_regular(path) if inside in _MEMBERS else _open_asset(path, root)
            with file:
                yield inside, file


def _open_asset(path: str, root: str) -> BinaryIO:
    """A file below `assets`, where any name and content will do: it comes from the model's folder, or from what a cache
    of Hugging Face's holds for it, whatever links there are and when they come."""
    target = os.path.realpath(path)
    for base, part in ((root, ""), *_blobs_of(root)):
        if target.startswith(f"{base}/{part}"):
            with opened_folder(base, os.path.dirname(os.path.relpath(target, base))) as place:
                return open_regular(target, place)
    raise UsageError(
        f"{path} is a link to {target}, outside of the model's folder; if it belongs to the model, copy it there"
    )


def _blobs_of(root: str) -> list[tuple[str, str]]:
    """What the links of a folder `snapshots/…` in Hugging Face's cache lead to: a folder, and a part of it."""
    entry, is_snapshot, _ = f"{root}/".rpartition("/snapshots/")
    return [(entry, "blobs/")] if is_snapshot else []


def _copy(file: BinaryIO, member: IO[bytes], left: int) -> None:
    while left and (data := file.read(min(left, _COPY_BYTES))):
        member.write(data)
        left -= len(data)


def _indexes_of(shard: str) -> list[str]:
    """How the index would be called of the sharded weights that a file is one shard of, by its name; none for others.

    Of any `.weights` within the index's name a shard's name tells nothing: there may be others.
    """
    found = _SHARD.fullmatch(shard)
    if found is None:
        return []
    base = found["base"]
    return [f"{base}.{INDEX_SUFFIX}", *([f"{base}.json"] if base.endswith("weights") else [])]


def shards_in(index: str) -> list[str]:
    """The names of the files that an index of sharded weights names, in order.

    Raises `CorruptCheckpointError` where it is none, or names files that are not beside it.
    """
    return list(dict.fromkeys(name for names in _map_of(index).values() for name in names))


def merge_shards(index: str, target: str, shard_at: Callable[[str], AbstractContextManager[str]]) -> None:
    """Writes sharded weights as the one `.weights.h5` file that they would be.

    `shard_at(name)` gives the path of a shard on this disk. Raises `CorruptCheckpointError` where a shard has not what
    the index says of it, or something that another has; and whatever `shard_at` raises for one that is not there.
    """
    groups: dict[str, list[str]] = {}
    for group, names in _map_of(index).items():
        for name in names:
            groups.setdefault(name, []).append(group)
    with h5py.File(target, "w") as merged:
        for name, expected in groups.items():
            with shard_at(name) as path:
                check_survives(path)
                with opened(path, path) as shard:
                    _check_is_alone(shard, path)
                    stored = [each.path for each in check_file(shard, path, os.path.getsize(path))]
                    missing = [group for group in expected if group.strip("/") not in shard]
                    twice = [each for each in stored if each in merged]
                    if missing or twice:
                        raise CorruptCheckpointError(
                            f"{path}: {missing[0]}, which {os.path.basename(index)} says is in it, is not there"
                            if missing
                            else f"{path}: {twice[0]} is in another shard as well"
                        )
                    for each in stored:
                        shard.copy(shard[each], merged, name=each)
                        _copy_texts(shard[each].parent, merged[each].parent)


def _copy_texts(source: h5py.Group, target: h5py.Group) -> None:
    """What a group says of the object whose variables are in it: of an optimizer, its name."""
    texts = {name: text_of(source, name) for name in source.attrs}
    target.attrs.update({name: text for name, text in texts.items() if text is not None})


def _check_is_alone(shard: h5py.File, path: str) -> None:
    if "model_config" in shard.attrs or "layer_names" in shard.attrs:
        raise UnsupportedStateError(f"{path} is a whole file of Keras's own, not a shard of weights")


def _map_of(index: str) -> dict[str, list[str]]:
    """Which files each group of variables lies in."""
    found = read_index(index, _WeightIndex, _MAX_INDEX_BYTES, "index of shards").weight_map
    groups = {group: [names] if isinstance(names, str) else names for group, names in found.items()}
    for group, names in groups.items():
        if not names or any(name != os.path.basename(name) or name in ("", ".", "..") for name in names):
            raise CorruptCheckpointError(f"{index}: for {group!r:.100} it names {names!r:.200}, not files next to it")
    if not groups:
        raise CorruptCheckpointError(f"{index} names no weights: its weight_map is empty")
    return groups
