"""Untrusted archives: what is packed comes back, what is hostile or damaged leaves nothing."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import tarfile
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
from ckptflow.interop.untrusted import archives, tars, zips
from ckptflow.interop.untrusted.archives import pack_tar, read_member, unpack_tar
from tests.places.test_files import FOLDER, read, write
from tests.places.test_files_faults import files_at_most


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


def refused(data: bytes, folder: Path, match: str) -> None:
    """`unpack_tar` raises, and nothing is there after it, in the folder or beside it."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "a.tar").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=match):
        unpack_tar(str(folder / "in" / "a.tar"), str(folder / "in" / "out"))
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
    monkeypatch.setattr(zips, "MAX_BYTES", 1999)
    refused(data, tmp_path, "2,000 bytes")
    monkeypatch.setattr(zips, "MAX_BYTES", 2000)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    refused(data, tmp_path, "at most 2,000 in 1 are unpacked")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    unpack_tar(str(tmp_path / "in" / "a.tar"), str(tmp_path / "out"))
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(zips, "MAX_BYTES", 2**40)
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


def test_folders_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no bytes: they are counted as members, also those that only a name asks for, and those that repeat."""
    again = special("again", tarfile.DIRTYPE).tobuf()
    with pytest.raises(CorruptCheckpointError, match="in 100,000 are unpacked"):
        read_member(io.BytesIO(gzip.compress(again * 200_000)), "a", max_bytes=4, where="x")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1000)
    refused(gzip.compress(again * 2000), tmp_path, "in 1,000 are unpacked")
    deep = tar_of(*((f"{number}/" + "d/" * 100 + "f", b"") for number in range(3)))
    (tmp_path / "deep").mkdir()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 102)
    refused(deep, tmp_path / "deep", "in 102 are unpacked")
    (tmp_path / "a.tar").write_bytes(deep)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 306)
    unpack_tar(str(tmp_path / "a.tar"), str(tmp_path / "out"))


def test_headers_without_end(tmp_path: Path) -> None:
    packed = gzip.compress(extension(tarfile.XHDTYPE, record("comment", "x" * 60_000)) * 2000)
    assert len(packed) < 2**20
    refused(packed, tmp_path, "bytes together are too long")
    with pytest.raises(CorruptCheckpointError, match="bytes together are too long"):
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
