"""What is in a root, as listings show it: names that are ours, sorted out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ckptflow.errors import CheckpointNotFoundError
from ckptflow.format.layout import (
    LINEAGE_PREFIX,
    MANIFEST_NAME,
    PINS_PREFIX,
    Folder,
    parse_claim_key,
    parse_folder,
    parse_pin_key,
    parse_pin_name_key,
    parse_tag,
)
from ckptflow.format.words import some_of
from ckptflow.storage.store import Entry, Store

RUN_LEVELS = 2  # of runs below a URL: URL/RUN and URL/EXPERIMENT/RUN


@dataclass(frozen=True, slots=True)
class Listing:
    """One listing of a root: folders with the size of each file, the claims' numbers, the pinned folders.

    `versions`, of files in folders, where the storage shows them: two of one version are one file, with two names.
    `pin_names`, of pinned folders, are for people. `runs_below` are the paths of other roots, further down.
    """

    folders: Mapping[Folder, Mapping[str, int]]
    claims: tuple[int, ...]
    pins: frozenset[Folder]
    versions: Mapping[Folder, Mapping[str, str]] = field(default_factory=dict)
    pin_names: Mapping[Folder, tuple[str, ...]] = field(default_factory=dict)
    runs_below: tuple[str, ...] = ()

    def only(self, folders: Iterable[Folder]) -> Listing:
        """The same listing as if nothing but these folders were there."""
        return replace(self, folders={folder: self.folders[folder] for folder in folders})

    def without(self, folders: Collection[Folder]) -> Listing:
        """The same listing as if these folders were not there."""
        return self.only(folder for folder in self.folders if folder not in folders)

    @property
    def committed(self) -> tuple[Folder, ...]:
        """The folders that hold a manifest, oldest first by (step, incarnation, call)."""
        return tuple(sorted(folder for folder, files in self.folders.items() if MANIFEST_NAME in files))

    def tags(self, folder: Folder) -> frozenset[str]:
        """Whose shards and receipts are in a folder, by the tags in their names."""
        return frozenset(tag for name in self.folders[folder] if (tag := parse_tag(name)) is not None)

    @property
    def top_number(self) -> int:
        """The highest number in any claim or folder name; 0 where there is none."""
        return max([*self.claims, *(folder.incarnation for folder in self.folders)], default=0)


def list_root(store: Store) -> Listing:
    """Lists the whole root once and sorts out what is ours."""
    return sort_out(store.list())


def list_run(store: Store) -> Listing:
    """The same of a root that is to be looked at. Raises `CheckpointNotFoundError` where it is none, and runs are below
    it: a folder or bucket that holds several."""
    listing = list_root(store)
    if listing.runs_below and not (listing.folders or listing.claims):
        raise CheckpointNotFoundError(
            f"{store.url}: this is no run, and has runs below it: {some_of(listing.runs_below, 5)}. Give the URL of one"
        )
    return listing


def run_places(key: str) -> Iterator[tuple[str, str, bool]]:
    """Each path that the file at `key` may be of the run at, its key there, and whether it shows that there is a run;
    down to the first that does. A run is what holds a checkpoint's folder, or a claim. Pure."""
    parts = key.split("/")
    for depth in range(min(RUN_LEVELS, len(parts) - 2) + 1):
        path, rest = "/".join(parts[:depth]), "/".join(parts[depth:])
        is_of_run = parse_folder(parts[depth]) is not None or parse_claim_key(rest) is not None
        yield path, rest, is_of_run
        if is_of_run:
            return


def sort_out(entries: Iterable[Entry]) -> Listing:
    """What the files of a root are; names that are not ours are passed over. Pure."""
    folders: dict[Folder, dict[str, int]] = {}
    versions: dict[Folder, dict[str, str]] = {}
    claims: list[int] = []
    pins: list[str] = []
    runs_below: set[str] = set()
    for entry in entries:
        head, _, rest = entry.key.partition("/")
        folder = parse_folder(head) if rest else None
        if folder is not None:
            folders.setdefault(folder, {})[rest] = entry.size_bytes
            if entry.version is not None:
                versions.setdefault(folder, {})[rest] = entry.version
        elif (number := parse_claim_key(entry.key)) is not None:
            claims.append(number)
        elif entry.key.startswith(PINS_PREFIX):
            pins.append(entry.key)
        else:
            runs_below.update(path for path, _, is_of_run in run_places(entry.key) if is_of_run)
    pin_names = names_of_pins(pins)
    return Listing(folders, tuple(claims), frozenset(pin_names), versions, pin_names, tuple(sorted(runs_below)))


def names_of_pins(keys: Iterable[str]) -> dict[Folder, tuple[str, ...]]:
    """The folders that are pinned, each with its names: what has a name and no pin is not pinned. Pure."""
    ordered = sorted(keys)
    names: dict[Folder, tuple[str, ...]] = {folder: () for key in ordered if (folder := parse_pin_key(key)) is not None}
    for folder, name in filter(None, map(parse_pin_name_key, ordered)):
        if folder in names:
            names[folder] = (*names[folder], name)
    return names


def list_claims(store: Store) -> tuple[int, ...]:
    """The numbers of all claims: one listing of `lineage/`."""
    return tuple(n for entry in store.list(LINEAGE_PREFIX) if (n := parse_claim_key(entry.key)) is not None)


def list_pins(store: Store) -> frozenset[Folder]:
    """The folders that are pinned: one listing of `pins/`."""
    return frozenset(list_pin_names(store))


def list_pin_names(store: Store) -> dict[Folder, tuple[str, ...]]:
    """The same, with the names of each."""
    return names_of_pins(entry.key for entry in store.list(PINS_PREFIX))
