"""Untrusted zips: each reader of one must find the same in it, in bounded memory."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectNotFoundError,
)
from ckptflow.interop.untrusted import zips
from ckptflow.interop.untrusted.zips import check_zip


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **words: Any) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method, **words) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


MODEL = {"config.json": b"{}" * 100, "model.weights.h5": os.urandom(5000), "assets/": b"", "assets/ä": b"x"}


def check(data: bytes, folder: Path) -> None:
    (folder / "m.keras").write_bytes(data)
    check_zip(str(folder / "m.keras"))


def unfit(data: bytes, folder: Path, match: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=rf"m\.keras is not a valid zip: .*{match}"):
        check(data, folder)


def in_place(data: bytes, old: bytes, new: bytes, which: int = 0) -> bytes:
    """`data` with the occurrence number `which` (from behind with -1) of `old` replaced."""
    assert len(old) == len(new)
    places = [at for at in range(len(data)) if data.startswith(old, at)]
    at = places[which]
    return data[:at] + new + data[at + len(old) :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_as_they_are_made(tmp_path: Path, method: int) -> None:
    check(zip_of(MODEL, method), tmp_path)
    check(zip_of({}), tmp_path)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive, archive.open("later", "w", force_zip64=True) as member:
        member.write(bytes(10_000))
    check(data.getvalue(), tmp_path)
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a", bytes(1000))
        archive.writestr("b", b"")
    check(stream.getvalue(), tmp_path)


class Unseekable(io.BytesIO):
    """To which the sizes of a member are written after its content."""

    def seek(self, *arguments: Any) -> int:
        raise OSError("not seekable")


@pytest.mark.parametrize("name", ["/absolute", "../up", "a/../../up", "a//b", "a\\b", "x\ny", "."])
def test_zip_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    unfit(zip_of({"fine": b"x", name: b"evil"}), tmp_path, "not a storage key")


def test_zip_members_that_do_not_go_together(tmp_path: Path) -> None:
    unfit(in_place(in_place(zip_of({"aa": b"1", "ab": b"2"}), b"ab", b"aa"), b"ab", b"aa"), tmp_path, "twice")
    unfit(zip_of({"a": b"1", "a/b": b"2"}), tmp_path, "both a file and a folder")
    unfit(zip_of({"a/b/c": b"1", "a/b": b"2"}), tmp_path, "both a file and a folder")
    data = zip_of({"aXb": b"1"})
    unfit(in_place(in_place(data, b"aXb", b"a\0b"), b"aXb", b"a\0b"), tmp_path, "not a storage key")


def test_zip_headers_that_disagree(tmp_path: Path) -> None:
    data = zip_of({"config": b"{}" * 50, "weights": b"w" * 50}, zipfile.ZIP_STORED)
    unfit(in_place(data, b"config", b"c0nfig"), tmp_path, "its own header 'c0nfig'")
    unfit(in_place(data, b"config", b"c0nfig", -1), tmp_path, "the directory says 'c0nfig'")
    size = struct.pack("<II", 100, 100)
    for which in (0, -1):
        unfit(in_place(data, size, struct.pack("<II", 90, 90), which), tmp_path, "different sizes")
    crc = struct.pack("<I", zlib.crc32(b"{}" * 50))
    unfit(in_place(data, crc, b"1234"), tmp_path, "different sizes or checksums")
    unfit(in_place(in_place(data, crc, b"1234"), crc, b"1234", -1), tmp_path, "checksum, that it says")
    unfit(data[:100] + b"x" + data[101:], tmp_path, "does not unpack")
    first, second = (at for at in range(len(data)) if data.startswith(b"PK\1\2", at))
    comment = struct.pack("<H", len(data) - 22 - second)  # the second entry as the comment of the first
    hidden = data[: first + 32] + comment + data[first + 34 :]
    unfit(hidden, tmp_path, "2 members, and has 1")
    unfit(in_place(hidden, b"\2\0\2\0", b"\1\0\1\0", -1), tmp_path, "does not follow the last member")


def test_zip_members_that_unpack_to_something_else(tmp_path: Path) -> None:
    data = zip_of({"a": bytes(10_000)})
    size = struct.pack("<I", 10_000)
    shorter = struct.pack("<I", 9_000)
    unfit(in_place(in_place(data, size, shorter), size, shorter), tmp_path, "9,000 bytes, or checksum")
    longer = struct.pack("<I", 11_000)
    unfit(in_place(in_place(data, size, longer), size, longer), tmp_path, "11,000 bytes, or checksum")


def test_zip_members_that_overlap(tmp_path: Path) -> None:
    """One content under many names: small, and endless when unpacked."""
    data = bytearray(zip_of({"a": b"x" * 100, "b": b"y" * 100}, zipfile.ZIP_STORED))
    entries = [at for at in range(len(data)) if data.startswith(b"PK\1\2", at)]
    data[entries[1] + 42 : entries[1] + 46] = struct.pack("<I", 20)  # b begins within a
    unfit(bytes(data), tmp_path, "they overlap")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda info: None, "encrypted"),
        (lambda info: setattr(info, "external_attr", 0o120777 << 16), "a link or a device"),
        (lambda info: setattr(info, "compress_type", zipfile.ZIP_BZIP2), "method 12"),
        (lambda info: setattr(info, "compress_type", zipfile.ZIP_LZMA), "method 14"),
    ],
    ids=["encrypted", "link", "bzip2", "lzma"],
)
def test_zip_members_that_are_not_taken(tmp_path: Path, change: Callable[[Any], None], match: str) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        info = zipfile.ZipInfo("a")
        change(info)
        archive.writestr(info, b"target")
    content = bytearray(data.getvalue())
    if match == "encrypted":
        content[6] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
    unfit(bytes(content), tmp_path, match)


def test_zip_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zip_of({"a": bytes(600), "b": bytes(600)})
    monkeypatch.setattr(zips, "MAX_BYTES", 1200)
    check(data, tmp_path)
    monkeypatch.setattr(zips, "MAX_BYTES", 1199)
    unfit(data, tmp_path, "more than 1,199 bytes")
    monkeypatch.setattr(zips, "MAX_BYTES", 2**40)
    monkeypatch.setattr(zips, "FREE_BYTES", 2**20)
    bomb = zip_of({"a": bytes(10 * 2**20)})
    unfit(bomb, tmp_path, "unpacks to more than")
    monkeypatch.setattr(zips, "MAX_RATIO", 2000.0)
    check(bomb, tmp_path)
    monkeypatch.setattr(zips, "MAX_MEMBERS", 1)
    unfit(data, tmp_path, "2 members")


def test_a_directory_that_would_take_all_memory(tmp_path: Path) -> None:
    """Announced in the zip64 records, where counts have room."""
    end64 = zips._END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**40, 0)
    locator = zips._LOCATOR.pack(b"PK\6\7", 0, 0, 1)
    end = zips._END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    unfit(end64 + locator + end, tmp_path, "1,099,511,627,776 members")
    unfit(locator + end, tmp_path, "cut short")


def test_zip_damage(tmp_path: Path) -> None:
    data = zip_of(MODEL)
    for changed in (b"", b"not a valid zip", data[:-30], data[100:], data[: len(data) // 2]):
        unfit(changed, tmp_path, "")
    with pytest.raises(ObjectNotFoundError, match="missing"):
        check_zip(str(tmp_path / "missing"))


def test_any_bit_of_a_zip_that_flips_is_refused_or_changes_no_content(tmp_path: Path) -> None:
    data = zip_of(MODEL)
    chance = random.Random(7)
    path, taken = tmp_path / "m.keras", 0
    for number in range(400):
        changed = bytearray(data)
        changed[chance.randrange(len(data) // 2 * (number % 2), len(data))] ^= 1 << chance.randrange(8)
        try:
            check(bytes(changed), tmp_path)
        except CorruptCheckpointError:
            continue
        taken += 1
        with zipfile.ZipFile(path) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == MODEL
    assert taken < 200  # dates, versions, comments
