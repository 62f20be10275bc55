"""How many bytes of a root are free once some of its folders are deleted. Pure."""

from __future__ import annotations

from collections.abc import Collection

from ckptflow.commit.listing import Listing
from ckptflow.format.layout import Folder


def freed_bytes(listing: Listing, deleted: Collection[Folder]) -> dict[Folder, int]:
    """What each folder frees if all of these are deleted; together that is what becomes free.

    On a disk a file may have a name in several folders: if one of them stays it frees nothing, and else it counts once,
    for the last of them.
    """
    taken = {
        version
        for folder, versions in listing.versions.items()
        if folder in listing.folders and folder not in deleted
        for version in versions.values()
    }
    freed: dict[Folder, int] = {}
    for folder in sorted(deleted, reverse=True):
        versions = listing.versions.get(folder, {})
        alone = [name for name in listing.folders[folder] if versions.get(name) not in taken]
        freed[folder] = sum(listing.folders[folder][name] for name in alone)
        taken.update(versions.values())
    return freed
