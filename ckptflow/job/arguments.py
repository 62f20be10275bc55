"""Checks of what users hand to the manager: clear errors before anything is done."""

from __future__ import annotations

import math
import mmap
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex

from ckptflow.commit.retention import KeepLast, Policy
from ckptflow.events import Event
from ckptflow.format.layout import MAX_NUMBER
from ckptflow.format.values import MAX_METADATA_BYTES, check_room, is_unicode, to_json
from ckptflow.transfer.packing import MIN_SHARD_BYTES

DISK_SHARD_BYTES = 65 * 2**20  # room for a header beside tensors that make up 64 MiB, so that none is cut
OBJECT_SHARD_BYTES = 8 * 2**20  # one request: small enough that the budget holds as many as fill a link
DEFAULT_MEMORY_BUDGET_BYTES = 4 * DISK_SHARD_BYTES
DEFAULT_COMMIT_TIMEOUT_S = 600.0
DEFAULT_PEER_TIMEOUT_S = 3600.0
LEAVING_S = 15.0
DEFAULT_KEEP = (KeepLast(5),)


def check_policies(keep: Sequence[Policy] | Policy | int) -> tuple[Policy, ...]:
    """One policy or several, as a tuple; a number is how many of the newest to keep.

    None at all, or the class of a policy, is an error: every checkpoint but the newest would go, or none ever.
    """
    if isinstance(keep, SupportsIndex) and not isinstance(keep, bool):
        return (KeepLast(operator.index(keep)),)
    policies: tuple[Any, ...] = tuple(keep) if isinstance(keep, Iterable) and not callable(keep) else (keep,)
    if not policies:
        raise ValueError(f"keep: {keep!r} has no policy in it; keep=1 retains only the newest checkpoint")
    for policy in policies:
        if isinstance(policy, type):
            raise ValueError(f"keep: {policy.__name__} is a class, not a policy; call it, as in KeepLast(5)")
        if not callable(policy):
            raise ValueError(
                f"keep: {policy!r} is not a policy; give a number or some of KeepLast, KeepBest, KeepEvery"
            )
    return policies


def why_not_before_fresh(step: int) -> str:
    """Why a manager that is to start over restores no `step`: a save would go on from it, and not start over."""
    return (
        f"step {step} is not restored by a manager that is to start over (fresh=True) and has no checkpoint of its own "
        "yet. To go on from that step, leave fresh out; to look at it, make another manager with read_only=True, or "
        "call ckptflow.open_checkpoint"
    )


def check_hooks(on_event: object) -> tuple[Callable[[Event], object], ...]:
    """One hook or several, as a tuple."""
    hooks: tuple[Any, ...] = (
        (on_event,) if callable(on_event) or not isinstance(on_event, Sequence) else tuple(on_event)
    )
    for hook in hooks:
        if not callable(hook):
            raise ValueError(f"on_event: {hook!r} cannot be called with an event; see ckptflow.events")
    return hooks


def default_shard_bytes(*, is_object_store: bool, memory_budget_bytes: int) -> int:
    """What a shard may take where nobody has said it: no more than the budget has whole pages for."""
    whole_pages = memory_budget_bytes // mmap.PAGESIZE * mmap.PAGESIZE
    return min(OBJECT_SHARD_BYTES if is_object_store else DISK_SHARD_BYTES, whole_pages)


def check_arguments(
    shard_bytes: int | None,
    memory_budget_bytes: int,
    commit_timeout_s: float,
    peer_timeout_s: float | None,
    on_save_error: str,
    verify_replicas: str,
    restore_from: str,
    concurrency: int | None,
) -> None:
    least_bytes = MIN_SHARD_BYTES if shard_bytes is None else shard_bytes
    for name, size_bytes in (("shard_bytes", least_bytes), ("memory_budget_bytes", memory_budget_bytes)):
        if not _is_whole(size_bytes):
            raise ValueError(f"{name} is a whole number of bytes, not {size_bytes!r}")
    if least_bytes < MIN_SHARD_BYTES:
        raise ValueError(f"shard_bytes is at least {MIN_SHARD_BYTES}, not {shard_bytes}")
    if memory_budget_bytes < least_bytes:
        raise ValueError(f"memory_budget_bytes={memory_budget_bytes} holds no shard of shard_bytes={least_bytes}")
    if concurrency is not None and (not _is_whole(concurrency) or concurrency < 1):
        raise ValueError(f"concurrency is a whole number of at least 1, or None, not {concurrency!r}")
    if not (_is_real(commit_timeout_s) and commit_timeout_s > 0):
        raise ValueError(f"commit_timeout_s is a number of seconds above 0, not {commit_timeout_s!r}")
    if peer_timeout_s is not None and not (_is_real(peer_timeout_s) and peer_timeout_s > 0):
        raise ValueError(f"peer_timeout_s is a number of seconds above 0, or None, not {peer_timeout_s!r}")
    if on_save_error not in ("raise", "log"):
        raise ValueError(f'on_save_error is "raise" or "log", not {on_save_error!r}')
    if verify_replicas not in ("small", "all"):
        raise ValueError(f'verify_replicas is "small" or "all", not {verify_replicas!r}')
    if restore_from not in ("auto", "storage"):
        raise ValueError(f'restore_from is "auto" or "storage", not {restore_from!r}')


def _is_whole(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str)


def describe_step(step: SupportsIndex) -> int | str:
    """The step, for a message; what is none is refused elsewhere."""
    try:
        return check_step(step)
    except ValueError:
        return "?"


def check_step(step: SupportsIndex) -> int:
    """A whole number in any form, also a tensor's or a variable's; never one that had to be rounded."""
    value: Any = step
    try:
        value = value.numpy() if hasattr(value, "numpy") else value
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, NotImplementedError):  # the latter: a variable in a graph
        number = None
    if number is None:
        raise ValueError(f"a step is a whole number, not {step!r}")
    if not 0 <= number < MAX_NUMBER:
        raise ValueError(f"a step is between 0 and 2**62, not {number}")
    return number


def check_metrics(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    checked: dict[str, float] = {}
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ValueError(f"metrics is a dict of numbers by name, not {metrics!r}")
    for name, value in (metrics or {}).items():
        if not isinstance(name, str) or not name or not is_unicode(name):
            raise ValueError(f"a metric's name is a text, not {name!r}")
        try:
            if isinstance(value, str | bytes | bytearray) or "complex" in str(getattr(value, "dtype", "")):
                raise TypeError("float() would read a text, and drop an imaginary part")
            checked[name] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"metric {name!r} is no number: {value!r}") from error
        if not math.isfinite(checked[name]):
            raise ValueError(
                f"metric {name!r} is {checked[name]}: nothing was saved. Leave it out of metrics to save all the same; "
                "a checkpoint without the metric is never among the best"
            )
    return checked


def check_metadata(metadata: Any) -> Any:
    """In the form in which a manifest holds it."""
    checked = to_json(metadata, "metadata")
    check_room({"metadata": checked}, MAX_METADATA_BYTES)
    return checked
