"""How long a request may stand still: no byte sent, none received. A slow transfer that moves is never cut off."""

from __future__ import annotations

import functools
import math
import socket
from collections.abc import Callable
from typing import Any

STALL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
_MAX_S = 86_400.0
_RETRY_S = 60.0  # how long a request is tried again that fails at once
# What waits in the kernel to be sent. A client begins to wait for the reply when it has handed over the last byte, and
# the kernel would take megabytes: on a slow link they are on their way for longer than a reply may take.
_UNSENT_BYTES = 2**18
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux


class StalledError(Exception):
    """A request that was given up because nothing moved."""


def check_stall_timeout(value: Any) -> float | None:
    """The limit in seconds, None for no limit. A command line gives it as text. Raises ValueError."""
    if value is None:
        return None
    try:
        limit_s = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        limit_s = math.nan
    if not 0 < limit_s <= _MAX_S:
        raise ValueError(
            f"stall_timeout_s is a number of seconds above 0 and up to {_MAX_S:,.0f} (one day), or None for no limit, "
            f"not {value!r}"
        )
    return limit_s


def connect_timeout_s(stall_timeout_s: float | None) -> float:
    """How long a connection may take to be there, TLS included."""
    return min(CONNECT_TIMEOUT_S, stall_timeout_s or CONNECT_TIMEOUT_S)


def retry_time_s(stall_timeout_s: float | None) -> float:
    """How long to go on trying: long enough that a request that stood still is tried again, more than once."""
    return max(_RETRY_S, 3 * (stall_timeout_s or 0))


def socket_factory(stall_timeout_s: float | None) -> Callable[[Any], socket.socket]:
    """Makes aiohttp's sockets. Their kernel ends a connection when what is to be sent has not moved for that long.

    aiohttp itself has a limit for what it reads and none for what it writes. The text of what is returned is the same
    for the same limit: fsspec compares file systems by it.
    """
    return functools.partial(_make_socket, stall_timeout_s)


def _make_socket(stall_timeout_s: float | None, address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        if _TCP_USER_TIMEOUT is not None and stall_timeout_s is not None:
            made.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, math.ceil(stall_timeout_s * 1000))
        if _TCP_NOTSENT_LOWAT is not None:
            made.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    except BaseException:
        made.close()
        raise
    return made
