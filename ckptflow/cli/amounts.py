"""Amounts on a command line: bytes, bytes per second, and a part of all bytes. Pure."""

from __future__ import annotations

import re
from decimal import Decimal

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([KMGTkmgt]i?)?B?", re.ASCII)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%", re.ASCII)
_POWERS = "KMGT"


def read_size(text: str, option: str) -> int:
    """Bytes, from `1500000`, `100MB` (powers of 1000) or `1.5GiB` (powers of 1024). Raises ValueError."""
    match = _AMOUNT.fullmatch(text.strip())
    unit = (match[2] or "").upper() if match else ""
    factor = (1024 if unit.endswith("I") else 1000) ** (_POWERS.index(unit[0]) + 1) if unit else 1
    size_bytes = float(match[1]) * factor if match else 0.0
    if not 1 <= size_bytes < 2**63:
        bits = "; a lower-case b would be bits" if text.strip().endswith("b") else ""
        raise ValueError(f"{option} {text!r} is not a number of bytes above 0, such as 100MB or 1.5GiB{bits}")
    return int(size_bytes)


def read_rate(text: str, option: str) -> int:
    """Bytes per second, from the same with or without `/s`; with its unit, since 100 may be meant as megabytes. Raises
    ValueError."""
    _check_unit(text, option, f"{text.strip().removesuffix('/s')}MB/s")
    try:
        return read_size(text.strip().removesuffix("/s"), option)
    except ValueError as error:
        bits = "; a lower-case b would be bits" if text.strip().removesuffix("/s").endswith("b") else ""
        message = f"{option} {text!r} is not a number of bytes per second above 0, such as 100MB/s{bits}"
        raise ValueError(message) from error


def read_part(text: str, option: str) -> float | int:
    """A part of all bytes, above 0 and up to 1, as a float from `5%`; else a number of bytes. Raises ValueError."""
    _check_unit(text, option, f"{text.strip()}%")
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        try:
            return read_size(text, option)
        except ValueError as error:
            raise ValueError(
                f"{option} {text!r} is neither a percentage, such as 5%, nor a size, such as 10GiB"
            ) from error
    part = float(Decimal(match[1]) / 100)
    if not 0 < part <= 1:
        raise ValueError(f"{option} {text!r} is not above 0% and at most 100%")
    return part


def _check_unit(text: str, option: str, likely: str) -> None:
    number = text.strip().removesuffix("/s")
    if number.replace(".", "", 1).isdecimal():
        raise ValueError(f"{option} {text!r} has no unit: write {likely}, or {number}B if bytes are meant")


def percentage(part: float) -> str:
    """What `read_part` reads as exactly this part: `5%`."""
    return f"{(Decimal(repr(part)) * 100).normalize():f}%"
