"""Names in storage: folder, shard, receipt, claim and pin names ↔ what they mean. Pure; no I/O.

Every parser is the exact inverse of its writer: a name that is not what the writer would have produced is not ours
(`None`), so that two names never mean one thing. Numbers are parsed and compared as numbers, never as text.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from weakref import WeakValueDictionary

import crc32c
import msgspec

MANIFEST_NAME = "manifest.json"
LINEAGE_PREFIX = "lineage/"
PINS_PREFIX = "pins/"
MAX_NUMBER = 2**62  # steps and incarnations travel between workers as int64


@dataclass(frozen=True, order=True, slots=True)
class Folder:
    """One checkpoint's folder: `000000001500-i0007`, or `000000001500-i0007-r2` for the second call at this step.

    Ordered by (step, incarnation, call). A folder name is never used twice.
    """

    step: int
    incarnation: int
    call: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.step < MAX_NUMBER and 1 <= self.incarnation < MAX_NUMBER and 1 <= self.call < MAX_NUMBER):
            raise ValueError(f"no folder has step {self.step}, incarnation {self.incarnation}, call {self.call}")

    def __str__(self) -> str:
        suffix = f"-r{self.call}" if self.call > 1 else ""
        return f"{self.step:012d}-i{self.incarnation:04d}{suffix}"

    def key(self, name: str) -> str:
        """The key of the file `name` in this folder."""
        return f"{self}/{name}"

    @property
    def manifest_key(self) -> str:
        return self.key(MANIFEST_NAME)


_FOLDER = re.compile(r"(\d{12,19})-i(\d{4,19})(?:-r(\d{1,19}))?", re.ASCII)
# Of a save by thousands of workers there are a hundred thousand: the patterns take what is written so, and no other.
_FIVE, _FOUR = r"(\d{5}|[1-9]\d{5,8})", r"(\d{4}|[1-9]\d{4,8})"
_SHARD = re.compile(rf"shard-{_FIVE}-of-{_FIVE}-{_FOUR}(?:-([0-9a-f]{{8}}))?\.safetensors", re.ASCII)
_RECEIPT = re.compile(rf"receipt-{_FIVE}-of-{_FIVE}(?:-([0-9a-f]{{8}}))?\.json", re.ASCII)
_PIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")  # safe in any storage, shell and URL
_CLAIM = re.compile(r"lineage/(\d{6,19})\.json", re.ASCII)


def parse_folder(name: str) -> Folder | None:
    """The folder called `name`, or None where `name` is no folder of ours."""
    match = _FOLDER.fullmatch(name)
    if match is None:
        return None
    step, incarnation, call = int(match[1]), int(match[2]), int(match[3] or 1)
    if not (step < MAX_NUMBER and 1 <= incarnation < MAX_NUMBER and 1 <= call < MAX_NUMBER):
        return None
    folder = Folder(step, incarnation, call)
    return folder if str(folder) == name else None


_LINEAGES: WeakValueDictionary[bytes, frozenset[Folder]] = WeakValueDictionary()


def parse_folders(names: tuple[str, ...]) -> frozenset[Folder]:
    """The folders of a lineage. All manifests of one life have the same, and it may name thousands: while any of them
    is in use, so is the one set. Raises ValueError if one is no folder's name.
    """
    digest = hashlib.blake2b(msgspec.json.encode(names)).digest()
    known = _LINEAGES.get(digest)
    if known is not None:
        return known
    found = [parse_folder(name) for name in names]
    if None in found:
        raise ValueError("its lineage names something that is not a checkpoint folder")
    return _LINEAGES.setdefault(digest, frozenset(folder for folder in found if folder is not None))


def writer_tag(writer_id: str) -> str:
    """What the names of a writer's shards and receipts end with: the crc32c of its id, eight hexadecimal digits.

    Two incarnations can hold one number, if claims were deleted by hand: even then no name is written by both.
    """
    return f"{crc32c.crc32c(writer_id.encode()):08x}"


def shard_name(worker: int, world_size: int, index: int, tag: str | None = None) -> str:
    """Worker `worker`'s shard number `index`: `shard-00003-of-00008-0000-1a2b3c4d.safetensors`, `tag` last."""
    name = f"shard-{worker:05d}-of-{world_size:05d}-{index:04d}.safetensors"
    return name if tag is None else with_tag(name, tag)


def parse_shard_name(name: str) -> tuple[int, int, int] | None:
    """(worker, world size, index) of a shard's name, or None."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    worker, world_size, index = int(match[1]), int(match[2]), int(match[3])
    return (worker, world_size, index) if worker < world_size else None


def receipt_name(worker: int, world_size: int, tag: str | None = None) -> str:
    """Worker `worker`'s receipt: `receipt-00003-of-00008-1a2b3c4d.json`, `tag` last."""
    name = f"receipt-{worker:05d}-of-{world_size:05d}.json"
    return name if tag is None else with_tag(name, tag)


def parse_receipt_name(name: str) -> tuple[int, int] | None:
    """(worker, world size) of a receipt's name, or None."""
    match = _RECEIPT.fullmatch(name)
    if match is None:
        return None
    worker, world_size = int(match[1]), int(match[2])
    return (worker, world_size) if worker < world_size else None


def parse_tag(name: str) -> str | None:
    """The tag of the writer of a shard or receipt; None where `name` has none, or is neither."""
    match = _SHARD.fullmatch(name) or _RECEIPT.fullmatch(name)
    return match[match.re.groups] if match is not None else None


def with_tag(name: str, tag: str) -> str:
    """The same name of a shard or receipt, with its writer's tag."""
    stem, dot, extension = name.rpartition(".")
    return f"{stem}-{tag}{dot}{extension}"


def claim_key(number: int) -> str:
    """The key of incarnation `number`'s claim: `lineage/000007.json`."""
    return f"{LINEAGE_PREFIX}{number:06d}.json"


def parse_claim_key(key: str) -> int | None:
    """The number of the claim at `key`, or None."""
    match = _CLAIM.fullmatch(key)
    number = int(match[1]) if match else 0
    return number if 1 <= number < MAX_NUMBER and claim_key(number) == key else None


def pin_key(folder: Folder) -> str:
    """The key whose presence pins `folder`: `pins/000000001000-i0006`."""
    return f"{PINS_PREFIX}{folder}"


def parse_pin_key(key: str) -> Folder | None:
    """The folder that the pin at `key` keeps, or None."""
    return parse_folder(key[len(PINS_PREFIX) :]) if key.startswith(PINS_PREFIX) else None


def check_pin_name(name: str) -> str:
    """Returns `name` if a pin can have it; else raises ValueError."""
    if not isinstance(name, str) or not _PIN_NAME.fullmatch(name):
        raise ValueError(
            f"the name of a pin has 1 to 100 letters, digits, or any of . _ + -, and begins with a letter or digit; "
            f"{name!r} is not of that form"
        )
    return name


def pin_name_key(folder: Folder, name: str) -> str:
    """The key whose presence, beside the pin of `folder`, is a name of that: `pins/000000001000-i0006=release`."""
    return f"{PINS_PREFIX}{folder}={name}"


def parse_pin_name_key(key: str) -> tuple[Folder, str] | None:
    """The folder that is pinned, and the name, or None."""
    pin, equals, name = key.partition("=")
    folder = parse_pin_key(pin) if equals and _PIN_NAME.fullmatch(name) else None
    return (folder, name) if folder is not None else None


def own_name(entry: str, worker: int) -> str:
    """The name, in a checkpoint, of what one worker has for itself of an entry of the state."""
    return f"{entry}/worker-{worker}"
