"""Archives that nobody vouches for: what is packed comes back, what is hostile or damaged leaves nothing."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageFullError,
    UsageError,
)
from ckptflow.interop.untrusted import tars, zips
from ckptflow.interop.untrusted.archives import check_zip, pack_tar, read_member, unpack_tar
from tests.places.test_files import FOLDER, read, write
from tests.places.test_files_faults import files_at_most

# ---- tar


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, **how: Any) -> bytes:
    """A tar of files, or of members as they are given."""
    data = io.BytesIO()
    with tarfile.TarFile(fileobj=data, mode="w", **how) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return data.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refused(data: bytes, folder: Path, match: str, **bounds: Any) -> None:
    """`unpack_tar` raises, and nothing is there after it, in the folder or beside it."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "a.tar").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=match):
        unpack_tar(str(folder / "in" / "a.tar"), str(folder / "in" / "out"), **bounds)
    assert os.listdir(folder) == ["in"]
    assert os.listdir(folder / "in") == ["a.tar"]


def test_a_folder_comes_back_and_packs_the_same(tmp_path: Path) -> None:
    files = FOLDER | {"a" * 150 + "/" + "b" * 200: os.urandom(3 * 2**20 + 17), "block": bytes(512 * 100)}
    write(str(tmp_path / "folder"), files)
    (tmp_path / "folder" / "empty folder").mkdir()
    for name, mode, time in (("a", 0o600, 1), ("b", 0o755, 2)):
        for path in (tmp_path / "folder").rglob("*"):
            os.utime(path, (time, time))
            if path.is_file():
                path.chmod(mode)
        pack_tar(str(tmp_path / "folder"), str(tmp_path / f"{name}.tar.gz"))
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    unpack_tar(str(tmp_path / "a.tar.gz"), str(tmp_path / "out"))
    assert read(str(tmp_path / "out")) == files
    assert (tmp_path / "out" / "empty folder").is_dir()
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in tar} == {(0, 0, "", 0)}
        assert tar.getnames() == sorted(tar.getnames())


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_what_others_pack(tmp_path: Path, form: int, packed: bool) -> None:
    long_name = "d" * 90 + "/" + "f" * 90
    members: list[Any] = [
        special(".", tarfile.DIRTYPE),
        special("./v", tarfile.DIRTYPE),
        ("./v/x", b"1" * 512),
        (long_name, b"2"),
    ]
    data = tar_of(*members, format=form)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(data) if packed else data)
    unpack_tar(str(path), str(tmp_path / "out"))
    assert read(str(tmp_path / "out")) == {"v/x": b"1" * 512, long_name: b"2"}


NAMES = ["/absolute", "../up", "a/../../up", "a/./b", "a//b", "a\\b", "x\ny", "x\x7f", ""]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    refused(tar_of(("fine", b"x"), (name, b"evil")), tmp_path, "no name for a member")
    if name:
        refused(tar_of(special(name, tarfile.DIRTYPE)), tmp_path, "no name for a member")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    refused(tar_of(("a", b"x"), special("b", kind, "a")), tmp_path, "a link, a device or sparse|no name")
    refused(tar_of(special("b", kind, "../../etc")), tmp_path, "a link, a device or sparse|cannot be unpacked")


def test_a_sparse_member(tmp_path: Path) -> None:
    header = tarfile.TarInfo("sparse")
    header.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1,1000000000,1",
                          "GNU.sparse.size": "1000000001", "GNU.sparse.name": "sparse"}  # fmt: skip
    refused(tar_of(header, format=tarfile.PAX_FORMAT), tmp_path, "sparse")


def test_members_that_do_not_go_together(tmp_path: Path) -> None:
    refused(tar_of(("a", b"1"), ("a", b"2")), tmp_path, "twice")
    refused(tar_of(("a", b"1"), ("./a", b"2")), tmp_path, "twice")
    refused(tar_of(("a", b"1"), ("a/b", b"2")), tmp_path, "both a file and a folder")
    refused(tar_of(("a/b", b"1"), ("a", b"2")), tmp_path, "both a file and a folder")


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar_of(("a", bytes(1000)), ("b", bytes(1000)))
    refused(data, tmp_path, "2,000 bytes", max_bytes=1999)
    refused(data, tmp_path, "at most 2,000 in 1 are unpacked", max_bytes=2000, max_members=1)
    unpack_tar(str(tmp_path / "in" / "a.tar"), str(tmp_path / "out"), max_bytes=2000, max_members=2)
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(zips, "FREE_BYTES", 2**20)
    bomb = gzip.compress(tar_of(("a", bytes(10 * 2**20))))
    refused(bomb, tmp_path / "again", "unpacks to 10,485,760 bytes")
    (tmp_path / "once more").mkdir()
    monkeypatch.setattr(tars, "_HEADERS_BYTES", 1536)
    padded = gzip.compress(tar_of(("a", b"x")) + bytes(10 * 2**20))  # which no header announces
    refused(padded, tmp_path / "once more", r"unpacks to more than 2,\d{3},\d{3} bytes")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_would_take_all_memory(tmp_path: Path, kind: bytes) -> None:
    header = special("header", kind)
    header.size = 2**32
    data = header.tobuf(tarfile.USTAR_FORMAT) + bytes(4 * 2**20)
    refused(gzip.compress(data), tmp_path, "a header of 4,294,967,296 bytes is too long")


def extension(kind: bytes, data: bytes) -> bytes:
    """A header that says something of the member behind it, or of all."""
    header = special("extension", kind)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length += 1
    return str(length).encode() + text


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
@pytest.mark.parametrize("length", [2**16, 2**20])
def test_a_header_that_takes_time_in_the_square_of_its_length(tmp_path: Path, kind: bytes, length: int) -> None:
    data = gzip.compress(extension(kind, b"1" * length) + tar_of(("a", b"x")))
    refused(data, tmp_path, "cannot be unpacked: a header of")
    with pytest.raises(CorruptCheckpointError, match="a header of"):
        read_member(io.BytesIO(data), "a", max_bytes=4, where="x")


def test_headers_for_all_members(tmp_path: Path) -> None:
    """`tarfile` gives each member a copy. What git writes there, and nothing else, is taken."""
    said = b"".join(record(f"key{number}", "x") for number in range(2000))
    many = b"".join(special(f"{number}", tarfile.DIRTYPE).tobuf() for number in range(20_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(gzip.compress(extension(tarfile.XGLTYPE, said) + many + bytes(1024)), tmp_path, "for all members")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB
    for key in ("path", "size", "GNU.sparse.size"):
        (tmp_path / key).mkdir()
        data = extension(tarfile.XGLTYPE, record(key, "1")) + tar_of(("a", b"x"))
        refused(data, tmp_path / key, "for all members")
    (tmp_path / "a.tar").write_bytes(extension(tarfile.XGLTYPE, record("comment", "f" * 40)) + tar_of(("a", b"x")))
    unpack_tar(str(tmp_path / "a.tar"), str(tmp_path / "out"))
    assert read(str(tmp_path / "out")) == {"a": b"x"}


def test_folders_without_end(tmp_path: Path) -> None:
    """They have no bytes: they are counted as members, also those that only a name asks for, and those that repeat."""
    again = special("again", tarfile.DIRTYPE).tobuf()
    refused(gzip.compress(again * 2000), tmp_path, "in 1,000 are unpacked", max_members=1000)
    with pytest.raises(CorruptCheckpointError, match="in 100,000 are unpacked"):
        read_member(io.BytesIO(gzip.compress(again * 200_000)), "a", max_bytes=4, where="x")
    deep = tar_of(*((f"{number}/" + "d/" * 100 + "f", b"") for number in range(3)))
    (tmp_path / "deep").mkdir()
    refused(deep, tmp_path / "deep", "in 102 are unpacked", max_members=102)
    (tmp_path / "a.tar").write_bytes(deep)
    unpack_tar(str(tmp_path / "a.tar"), str(tmp_path / "out"), max_members=306)


def test_headers_without_end(tmp_path: Path) -> None:
    packed = gzip.compress(extension(tarfile.XHDTYPE, record("comment", "x" * 60_000)) * 2000)
    assert len(packed) < 2**20
    refused(packed, tmp_path, "a header of")
    with pytest.raises(CorruptCheckpointError, match="a header of"):
        read_member(io.BytesIO(packed), "a", max_bytes=4, where="x")


def test_one_member_behind_what_is_packed_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "FREE_BYTES", 2**20)
    data = gzip.compress(tar_of(("zeros", bytes(2**24)), ("a", b"x")))
    with pytest.raises(CorruptCheckpointError, match="16,777,216 bytes"):
        read_member(io.BytesIO(data), "a", max_bytes=4, where="x")


@pytest.mark.parametrize(
    "data",
    [
        b"5 a=",
        b"0 a=b\n",
        b"99 a=b\n",
        b"-6 a=b\n",
        b"6 a=b\nx",
        b"5 abc\n",
        b" a=b\n",
        record("size", "-1"),
        record("size", "1e3"),
        record("size", "9" * 5000),
        record("GNU.sparse.map", "0,1"),
    ],
)
def test_a_header_that_says_nothing(data: bytes, tmp_path: Path) -> None:
    refused(extension(tarfile.XHDTYPE, data) + tar_of(("a", b"x")), tmp_path, "cannot be unpacked|damaged")


def test_names_that_are_too_long_and_of_no_member(tmp_path: Path) -> None:
    for name in ("./" * 20_000 + "a", "a" * 20_000):
        refused(extension(tarfile.XHDTYPE, record("path", name)) + tar_of(("a", b"x")), tmp_path, "it is too long")
    refused(extension(tarfile.XHDTYPE, record("path", "x")) + bytes(1024), tmp_path, "damaged or cut short")


def test_damage(tmp_path: Path) -> None:
    tar = tar_of(*((f"member-{number}", os.urandom(700)) for number in range(5)))
    packed = gzip.compress(tar)
    cases = {
        "no end": tar[: 5 * 1536],
        "cut in the content": tar[:2000],
        "cut in a header": tar[: 1536 + 100],
        "cut before the checksum": packed[:-6],
        "another checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
        "another header": tar[: 1536 + 10] + b"zzz" + tar[1536 + 13 :],
        "nothing": b"",
        "something else": b"PK\3\4 is no tar" * 100,
        "gzip of nothing": gzip.compress(b""),
    }
    for number, data in enumerate(cases.values()):
        (tmp_path / f"{number}").mkdir()
        refused(data, tmp_path / f"{number}", "damaged|cannot be unpacked")


def test_any_bit_that_flips_is_refused_or_changes_no_content(tmp_path: Path) -> None:
    content = {"a": os.urandom(3000), "b/c": b"text " * 200}
    packed = gzip.compress(tar_of(*content.items()))
    chance = random.Random(7)
    for number in range(200):
        changed = bytearray(packed)
        changed[chance.randrange(len(packed))] ^= 1 << chance.randrange(8)
        path, out = tmp_path / "a.tar.gz", tmp_path / f"{number}"
        path.write_bytes(changed)
        try:
            unpack_tar(str(path), str(out))
        except CorruptCheckpointError:
            assert not out.exists()
        else:
            assert read(str(out)) == content


def test_places_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("a", bytes(2 * 2**20))))
    (tmp_path / "there").mkdir()
    with pytest.raises(ObjectExistsError, match="there already"):
        unpack_tar(str(tmp_path / "a.tar"), str(tmp_path / "there"))
    with pytest.raises(ObjectNotFoundError, match=r"missing\.tar"):
        unpack_tar(str(tmp_path / "missing.tar"), str(tmp_path / "out"))
    with files_at_most(2**20), pytest.raises(StorageFullError, match="unpack"):
        unpack_tar(str(tmp_path / "a.tar"), str(tmp_path / "out"))
    write(str(tmp_path / "folder"), {"random": os.urandom(2 * 2**20)})
    with files_at_most(2**20), pytest.raises(StorageFullError, match="pack"):
        pack_tar(str(tmp_path / "folder"), str(tmp_path / "b.tar.gz"))
    os.symlink("random", tmp_path / "folder" / "link")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        pack_tar(str(tmp_path / "folder"), str(tmp_path / "b.tar.gz"))
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "folder", "there"]


def test_one_member(tmp_path: Path) -> None:
    write(str(tmp_path / "folder"), FOLDER)
    pack_tar(str(tmp_path / "folder"), str(tmp_path / "a.tar.gz"))
    with open(tmp_path / "a.tar.gz", "rb") as file:
        assert read_member(file, "saved_model.pb", max_bytes=5, where="x") == b"graph"
    with open(tmp_path / "a.tar.gz", "rb") as file:
        assert read_member(file, "nothing.pb", max_bytes=5, where="x") is None
    with open(tmp_path / "a.tar.gz", "rb") as file, pytest.raises(CorruptCheckpointError, match=r"^x .*5 bytes"):
        read_member(file, "saved_model.pb", max_bytes=4, where="x")
    with pytest.raises(CorruptCheckpointError, match=r"^x "):
        read_member(io.BytesIO(b"no tar"), "a", max_bytes=4, where="x")


# ---- zip


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **words: Any) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method, **words) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


MODEL = {"config.json": b"{}" * 100, "model.weights.h5": os.urandom(5000), "assets/": b"", "assets/ä": b"x"}


def check(data: bytes, folder: Path, **bounds: Any) -> None:
    (folder / "m.keras").write_bytes(data)
    check_zip(str(folder / "m.keras"), **bounds)


def unfit(data: bytes, folder: Path, match: str, **bounds: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match=rf"m\.keras is no zip that can be trusted: .*{match}"):
        check(data, folder, **bounds)


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
    check(data, tmp_path, max_bytes=1200)
    unfit(data, tmp_path, "more than 1,199 bytes", max_bytes=1199)
    monkeypatch.setattr(zips, "FREE_BYTES", 2**20)
    bomb = zip_of({"a": bytes(10 * 2**20)})
    unfit(bomb, tmp_path, "unpacks to more than")
    check(bomb, tmp_path, max_ratio=2000.0)
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
    for changed in (b"", b"no zip", data[:-30], data[100:], data[: len(data) // 2]):
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
