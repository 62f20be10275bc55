"""`ckptflow diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ckptflow.cli import completion
from ckptflow.cli.options import (
    Json,
    Options,
    OptionsJson,
    OtherOptions,
    UrlOrFolder,
    other_options,
    print_json,
    storage_options,
)
from ckptflow.cli.render import bar, make_console, print_table
from ckptflow.printable import printable

if TYPE_CHECKING:
    from ckptflow.format.dtypes import Array
    from ckptflow.reading import OpenCheckpoint

_CHUNK = 2**20  # elements compared at once, so that no second copy of a large tensor is made in float64

State = Literal["equal", "differs", "shape", "dtype", "only in the first", "only in the second"]


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor in both. Differences are of the second from the first; None where they cannot be taken (strings).

    `differing` counts elements that are not equal, bit by bit; a NaN in one of two counts there and not in the norms.
    """

    name: str
    state: State
    first: str = ""  # dtype and shape
    second: str = ""
    differing: int = 0
    elements: int = 0
    max_difference: float | None = None
    norm: float | None = None  # of the difference
    relative_norm: float | None = None  # by that of the first


@dataclass(frozen=True, slots=True)
class Diff:
    """All of it. `python_state` names the entries that are not the same in both."""

    first: str
    second: str
    tensors: tuple[TensorDiff, ...]
    python_state: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        return not self.python_state and all(tensor.state == "equal" for tensor in self.tensors)


def _step(what: str) -> Any:
    return typer.Option(min=0, metavar="N", help=what, show_default=False, autocompletion=completion.steps)


def diff(
    url: UrlOrFolder,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="The other root or folder. Default: the same root.", show_default=False),
    ] = None,
    step: Annotated[int | None, _step("URL's checkpoint: that of this step. Default: the newest.")] = None,
    other_step: Annotated[int | None, _step("OTHER's checkpoint: that of this step. Default: the newest.")] = None,
    show_equal: Annotated[bool, typer.Option("--all", help="Also the tensors that are equal.")] = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
    options_of_other: OtherOptions = None,
) -> None:
    """Compare two checkpoints tensor by tensor: names, shapes, dtypes, the largest difference and its norm.

    All bytes of both are read and verified, one tensor at a time. The exit code is 0 if all is bitwise equal, else 1.

    \b
    Examples:
      ckptflow diff s3://bucket/run-7 --step 1000 --other-step 1500
      ckptflow diff s3://bucket/run-7 gs://copies/run-7
    """
    from ckptflow.reading import open_checkpoint

    if other is None and other_step is None:
        raise ValueError("give OTHER, or --other-step: a checkpoint is always equal to itself")
    there = storage_options(options, options_json, url=url)
    second_url = url if other is None else other
    second_options = other_options(options_of_other, "--other-options", there, url, second_url)
    with (
        open_checkpoint(url, step, storage_options=there) as first,
        open_checkpoint(second_url, other_step, storage_options=second_options) as second,
    ):
        found = compare(first, second)
    if as_json:
        print_json(to_json(found))
    else:
        render(found, show_equal=show_equal)
    if not found.is_equal:
        raise typer.Exit(1)


def compare(first: OpenCheckpoint, second: OpenCheckpoint) -> Diff:
    """Reads both, one tensor of each at a time."""
    names = sorted({*first, *second})
    tensors = []
    with bar("comparing", is_bytes=True) as progress:
        progress.expect(first.manifest.size_bytes + second.manifest.size_bytes)
        for name in names:
            tensors.append(_compare_one(name, first, second))
            progress.advance(sum(each.spec(name).size_bytes for each in (first, second) if name in each))
    one, other = first.manifest.python_state, second.manifest.python_state
    missing = object()
    differing = [name for name in sorted({*one, *other}) if one.get(name, missing) != other.get(name, missing)]
    return Diff(first.checkpoint.url, second.checkpoint.url, tuple(tensors), tuple(differing))


def _compare_one(name: str, first: OpenCheckpoint, second: OpenCheckpoint) -> TensorDiff:
    if name not in second:
        return TensorDiff(name, "only in the first", first=_kind(first, name))
    if name not in first:
        return TensorDiff(name, "only in the second", second=_kind(second, name))
    kinds = _kind(first, name), _kind(second, name)
    one, other = first[name], second[name]
    if one.shape != other.shape:
        return TensorDiff(name, "shape", *kinds)
    if one.dtype != other.dtype:
        return TensorDiff(name, "dtype", *kinds)
    differing = _count_differing(one, other)
    largest, norm, relative = _norms(one, other) if differing else (0.0, 0.0, 0.0)
    return TensorDiff(name, "differs" if differing else "equal", *kinds, differing, one.size, largest, norm, relative)


def _kind(opened: OpenCheckpoint, name: str) -> str:
    tensor = opened.spec(name)
    return f"{tensor.dtype} {list(tensor.shape)}"


def _count_differing(one: Array, other: Array) -> int:
    """Elements that are not the same bits; strings by what they are."""
    import numpy as np

    if one.dtype == object:
        return sum(a != b for a, b in zip(one.flat, other.flat, strict=True))
    width = one.dtype.itemsize
    bits = [np.ascontiguousarray(each).reshape(-1).view(np.uint8).reshape(-1, width) for each in (one, other)]
    count = 0
    for begin in range(0, one.size, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        count += int(np.any(bits[0][part] != bits[1][part], axis=1).sum())
    return count


def _norms(one: Array, other: Array) -> tuple[float | None, float | None, float | None]:
    """The largest difference, the norm of the differences, and that by the norm of the first; over what is a number."""
    import numpy as np

    if one.dtype == object:
        return None, None, None
    wide: Any = np.complex128 if one.dtype.kind == "c" else np.float64
    largest = squares = of_first = 0.0
    flat = one.reshape(-1), other.reshape(-1)
    with np.errstate(all="ignore"):  # what overflows is infinite, and said so
        for begin in range(0, one.size, _CHUNK):
            a, b = (np.asarray(each[begin : begin + _CHUNK]).astype(wide) for each in flat)
            is_number = np.isfinite(a) & np.isfinite(b)
            a, b = a[is_number], b[is_number]
            distance = np.abs(b - a)
            largest = max(largest, float(distance.max(initial=0.0)))
            squares += float((distance**2).sum())
            of_first += float((np.abs(a) ** 2).sum())
    norm = squares**0.5
    return largest, norm, norm / of_first**0.5 if of_first else None


def to_json(found: Diff) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    from msgspec import to_builtins

    return {
        "first": found.first,
        "second": found.second,
        "equal": found.is_equal,
        "tensors": [to_builtins(tensor) for tensor in found.tensors],
        "python_state": list(found.python_state),
    }


def render(found: Diff, *, show_equal: bool) -> None:
    """Prints which two were compared, a line for each tensor that differs, and the sum."""
    console = make_console()
    console.print(f"{printable(found.first)} against {printable(found.second)}")
    shown = [tensor for tensor in found.tensors if show_equal or tensor.state != "equal"]
    if shown:
        columns = {"tensor": "left", "what": "left", "differing": "right", "largest": "right", "norm": "right"}
        columns |= {"relative": "right"}
        print_table(console, columns, [_cells(tensor) for tensor in shown])  # type: ignore[arg-type]
    for name in found.python_state:
        console.print(f"Python state differs: {printable(name)}", soft_wrap=True)
    equal = sum(tensor.state == "equal" for tensor in found.tensors)
    elements = sum(tensor.elements for tensor in found.tensors)
    console.print(f"{equal:,} of {len(found.tensors):,} tensors are equal, {elements:,} elements compared")


def _cells(tensor: TensorDiff) -> list[str]:
    what: str = tensor.state
    if tensor.state in ("shape", "dtype"):
        what = f"{tensor.first} against {tensor.second}"
    numbers = [tensor.max_difference, tensor.norm, tensor.relative_norm]
    counted = f"{tensor.differing:,} of {tensor.elements:,}" if tensor.state in ("differs", "equal") else ""
    return [tensor.name, what, counted, *("" if value is None else f"{value:.4g}" for value in numbers)]
