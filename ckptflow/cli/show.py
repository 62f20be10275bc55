"""`ckptflow show`: everything that one checkpoint's manifest says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Step, UrlOrFolder, print_json, storage_options
from ckptflow.cli.render import (
    WIDE,
    Justify,
    age_text,
    count_text,
    make_console,
    metrics_text,
    pin_text,
    print_facts,
    print_table,
    size_text,
    time_text,
    utc_text,
)
from ckptflow.cli.statistics import read_statistics, render_statistics, statistics_to_json
from ckptflow.errors import CheckpointNotFoundError, StorageError
from ckptflow.printable import printable
from ckptflow.storage.redaction import redact_url

if TYPE_CHECKING:
    from rich.console import Console

    from ckptflow.commit.catalog import Checkpoint
    from ckptflow.format.manifest import Manifest, TensorRecord
    from ckptflow.format.statistics import Statistics
    from ckptflow.reading import OpenCheckpoint

_TENSORS_SHOWN = 20
_NAMES_SHOWN = 8

# Why an incarnation started where it did.
_REASONS = {
    "start": "a run that began here",
    "resume": "resumed from {}",
    "rollback": "rolled back to {} on request",
    "damage": "fell back to {}: what was newer was damaged",
    "outside": "restored {}, which was superseded: no current checkpoint could be restored",
    "fresh": "started over with fresh=True",
}


def show(
    url: UrlOrFolder,
    step: Step = None,
    tensors: Annotated[
        bool | None,
        typer.Option(
            "--tensors/--no-tensors",
            help=f"All tensors, or none. Default: the {_TENSORS_SHOWN} largest.",
            show_default=False,
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Also the smallest, largest and mean value, and how many are NaN or Inf.")
    ] = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Show one checkpoint: where it comes from, what is in it, its tensors by size.

    Reads its manifest and lists the pins; with --stats it reads, and checks, the tensors as well.

    Without --step it is the newest current one whose manifest can be read. --step also finds superseded ones. If the
    storage does not return a file, what can be read is shown, and the exit code is 3 or 4.
    For an export, the checkpoint that it was made from is shown.

    \b
    Examples:
      ckptflow show s3://bucket/run-7 --step 1500 --tensors
      ckptflow show s3://bucket/run-7 --stats
      ckptflow show model.keras
    """
    from ckptflow.commit.prune import doubt_of
    from ckptflow.interop.formats import by_suffix
    from ckptflow.reading import open_to_show

    if stats and tensors is False:
        raise ValueError("--stats is about tensors: leave out --no-tensors")
    there = storage_options(options, options_json, url=url)
    if step is None and by_suffix(url) is not None and _show_export(url, there, as_json=as_json):
        return
    try:
        opened, summaries = open_to_show(url, step, storage_options=there)
        with opened:
            manifest, checkpoint = opened.manifest, opened.checkpoint
            pinned, pin_names = _pins_of(opened)
            statistics = read_statistics(opened) if stats else None
    except CheckpointNotFoundError:
        if step is not None or not _show_export(url, there, as_json=as_json):
            raise
        return
    doubt = doubt_of(summaries)
    if as_json:
        pins = {"pinned": pinned, "pin_names": list(pin_names)}
        print_json(to_json(manifest, checkpoint, statistics, tensors=tensors is not False) | pins | {"doubt": doubt})
    else:
        tensor_count = {None: _TENSORS_SHOWN, True: len(manifest.tensors), False: 0}[tensors]
        render(manifest, checkpoint, pin_text(pin_names) if pinned else "", tensor_count=tensor_count)
        if statistics is not None:
            make_console().print()
            render_statistics(_by_size(manifest), statistics, tensor_count)
        if doubt is not None:
            said = f"{printable(doubt[:1].upper() + doubt[1:])}."
            make_console().print(said, style="red", soft_wrap=True)
    if summaries.refused is not None:
        raise typer.Exit(exit_code(summaries.refused))


def _pins_of(opened: OpenCheckpoint) -> tuple[bool | None, tuple[str, ...]]:
    """Whether it is pinned, None where the storage lets nobody list that, and by which names."""
    try:
        names = opened.pin_names()
    except StorageError:
        return None, ()
    return names is not None, names or ()


def _show_export(url: str, options: dict[str, Any], *, as_json: bool) -> bool:
    """Shows the checkpoint that the export at `url` was made of; False where it is none of ours."""
    from ckptflow.interop.origin import find_provenance

    provenance = find_provenance(url, options)
    if provenance is None:
        return False
    if as_json:
        print_json({"url": redact_url(url), "exported_from": provenance})
        return True
    facts = [
        ("export", f"{redact_url(url)} ({provenance.format})"),
        ("checkpoint", f"{provenance.run_url}/{provenance.folder}"),
        ("step", str(provenance.step)),
        ("incarnation", f"{provenance.incarnation} of run {provenance.run_id}"),
        ("manifest", f"sha256 {provenance.manifest_sha256}"),
        ("exported", f"{provenance.exported_at} by ckptflow {provenance.ckptflow}"),
    ]
    print_facts(make_console(), facts)
    return True


def to_json(
    manifest: Manifest, checkpoint: Checkpoint, statistics: Mapping[str, Statistics] | None, *, tensors: bool
) -> dict[str, Any]:
    """The documented shape: see docs/cli.md. Values of metadata, Python state and models are as they are in storage."""
    names = ["folder", "step", "incarnation", "run_id", "writer_id", "world_size", "reason", "restored", "lineage"]
    names += [
        "barrier",
        "fresh_since",
        "sound_since",
        "size_bytes",
        "copied_bytes",
        "family",
        "software",
        "metrics",
        "metadata",
        "python_state",
        "models",
    ]
    names += ["diverged"]
    shards = [
        {
            "name": shard.name,
            "size_bytes": shard.size_bytes,
            "crc32c": f"{shard.crc32c:08x}",
            "copied_from": shard.copied_from,
        }
        for shard in manifest.shards
    ]
    listed = [
        _tensor_to_json(tensor) | (statistics_to_json(tensor, statistics) if statistics is not None else {})
        for tensor in _by_size(manifest)
    ]
    shown = {"tensors": listed} if tensors else {}
    return {
        "url": checkpoint.url,
        **{name: getattr(manifest, name) for name in names},
        "created_at": utc_text(checkpoint.created_at),
        "began_at": manifest.began_at,
        "timings": [{"blocked_s": timing.blocked_s, "write_s": timing.write_s} for timing in manifest.timings],
        "shards": shards,
        **shown,
    }


def _tensor_to_json(tensor: TensorRecord) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "size_bytes": tensor.size_bytes,
        "aliases": list(tensor.aliases),
        "components": tensor.components,
        "metric": tensor.metric,
        "slices": [
            {
                "shard": piece.shard,
                "offset": piece.offset,
                "start": list(piece.start),
                "shape": list(piece.shape),
                "crc32c": f"{piece.crc32c:08x}",
            }
            for piece in tensor.slices
        ],
    }


def _by_size(manifest: Manifest) -> list[TensorRecord]:
    return sorted(manifest.tensors, key=lambda tensor: (-tensor.size_bytes, tensor.name))


def render(manifest: Manifest, checkpoint: Checkpoint, pinned: str, *, tensor_count: int) -> None:
    """Prints what there is to say about the checkpoint, then its `tensor_count` largest tensors."""
    console = make_console()
    print_facts(console, _facts(manifest, checkpoint, pinned))
    if tensor_count and manifest.tensors:
        console.print()
        _print_tensors(console, manifest, tensor_count)
        hidden = len(manifest.tensors) - tensor_count
        if hidden > 0:
            console.print(f"{hidden} smaller ones are not shown. See --tensors.", style="dim")


def _facts(manifest: Manifest, checkpoint: Checkpoint, pinned: str) -> list[tuple[str, str]]:
    """What is known beside the tensors, as (name, text), without what is empty."""
    age = age_text(checkpoint.created_at, datetime.now(UTC))
    shards, workers = count_text(len(manifest.shards), "shard"), count_text(manifest.world_size, "worker")
    tensor_bytes = sum(tensor.size_bytes for tensor in manifest.tensors)
    facts = [
        ("checkpoint", checkpoint.url),
        ("step", str(manifest.step)),
        ("incarnation", f"{manifest.incarnation} of run {manifest.run_id}"),
        ("began as", _REASONS[manifest.reason].format(manifest.restored or "?")),
        ("builds on", _lineage_text(manifest)),
        ("created", f"{time_text(checkpoint.created_at)} ({age})"),
        ("retention", pinned),
        ("took", _timing_text(manifest)),
        (
            "size",
            f"{size_text(manifest.size_bytes)} in {shards} by {workers}",
        ),
        ("copied", _copies_text(manifest)),
        ("tensors", f"{len(manifest.tensors)}, {size_text(tensor_bytes)}"),
        ("metrics", metrics_text(manifest.metrics)),
        ("metadata", "" if manifest.metadata is None else json.dumps(manifest.metadata, ensure_ascii=False)),
        ("python state", _names_text(sorted(manifest.python_state))),
        ("models", _names_text(sorted(manifest.models))),
        ("software", ", ".join(f"{name} {version}" for name, version in manifest.software.items())),
        ("diverged", _names_text(manifest.diverged, "differ between workers, the chief's were saved")),
    ]
    return [(name, value) for name, value in facts if value]


def _copies_text(manifest: Manifest) -> str:
    """What was copied inside the storage and not sent, and from where; empty where nothing was."""
    sources: dict[str, list[int]] = {}
    for shard in manifest.shards:
        if shard.copied_from is not None:
            sources.setdefault(shard.copied_from.partition("/")[0], []).append(shard.size_bytes)
    said = [
        f"{size_text(sum(sizes))} in {count_text(len(sizes), 'shard')} from {name}" for name, sizes in sources.items()
    ]
    return "; ".join(said) + (f"; {size_text(manifest.sent_bytes)} were sent" if said else "")


def _timing_text(manifest: Manifest) -> str:
    """How long the slowest worker's part took; empty where nobody said."""
    if not manifest.timings:
        return ""
    write_s = max(timing.write_s for timing in manifest.timings)
    blocked_s = max(timing.blocked_s for timing in manifest.timings)
    return f"{write_s:.3g} s until the last worker's shards were durable; blocked training for {blocked_s:.3g} s"


def _lineage_text(manifest: Manifest) -> str:
    if not manifest.lineage:
        return ""
    last = manifest.lineage[-1]
    return last if len(manifest.lineage) == 1 else f"{len(manifest.lineage)} checkpoints, the newest {last}"


def _names_text(names: Sequence[str], about: str = "") -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more + (f": {about}" if about else "")


def _print_tensors(console: Console, manifest: Manifest, count: int) -> None:
    diverged = set(manifest.diverged)
    copied = {number for number, shard in enumerate(manifest.shards) if shard.copied_from is not None}
    rows = []
    for tensor in _by_size(manifest)[:count]:
        shards = {piece.shard for piece in tensor.slices}
        is_spread = len(shards) > 1 and console.width >= WIDE
        slices = f"{len(tensor.slices)} in {count_text(len(shards), 'shard')}" if is_spread else str(len(tensor.slices))
        notes = [f"{tensor.components} of workers"] if tensor.components else []
        notes += ["metric"] if tensor.metric else []
        notes += ["diverged"] if tensor.name in diverged else []
        notes += ["copied" if shards <= copied else "copied in part"] if shards & copied else []
        notes += [f"also {alias}" for alias in tensor.aliases]
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        rows.append([tensor.name, tensor.dtype, shape, size_text(tensor.size_bytes), slices, ", ".join(notes)])
    columns: dict[str, Justify] = {"tensor": "left", "dtype": "left", "shape": "left", "size": "right"}
    print_table(console, columns | {"slices": "right", "note": "left"}, rows)
