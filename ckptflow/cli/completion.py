"""What the shell offers after Tab for values: steps of a root on this machine, names of formats. Asks no network."""

from __future__ import annotations

import os

import typer


def steps(context: typer.Context) -> list[str]:
    """The committed steps of the roots on the command line that are folders of this machine, newest first."""
    from ckptflow.format.layout import MANIFEST_NAME, parse_folder

    found = set()
    for url in context.args:  # URL and OTHER: an option that has no value yet ends the parsing before they have names
        try:
            folders = [folder for folder in map(parse_folder, os.listdir(url)) if folder is not None]
        except OSError:  # a bucket, no folder, or one that may not be listed
            continue
        found |= {folder.step for folder in folders if os.path.exists(os.path.join(url, str(folder), MANIFEST_NAME))}
    return [str(step) for step in sorted(found, reverse=True)]


def export_formats() -> list[tuple[str, str]]:
    """The formats that `export` writes, each with what it is."""
    from ckptflow.interop.formats import FORMATS

    return [(entry.name, entry.what) for entry in FORMATS.values()]


def import_formats() -> list[tuple[str, str]]:
    """The formats that `import` reads, each with what it is."""
    from ckptflow.interop.formats import FORMATS

    return [(entry.name, entry.what) for entry in FORMATS.values() if entry.is_importable]
