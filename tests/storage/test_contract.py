"""The storage contract, against every storage and client that we support."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptflow.storage.wrappers import can_copy
from ckptflow.testing import Backend, StoreContract
from tests.servers import Server
from tests.storage.backends import DictBackend, FsspecMemoryBackend, GcsBackend, LocalBackend, S3Backend
from tests.storage.gcs_xml import GcsXmlBackend

SOME_BYTES = 20 * 2**20  # where what is larger goes no other way


class TestLocalDisk(StoreContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        yield LocalBackend(str(tmp_path / "not made yet" / "run-7"))
        shutil.rmtree(tmp_path)


class TestTmpfs(StoreContract):
    """A file system that refuses O_DIRECT."""

    large_bytes = SOME_BYTES

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        if not os.path.ismount("/dev/shm"):
            pytest.skip("/dev/shm is no mounted tmpfs here")
        root = tempfile.mkdtemp(prefix="ckptflow-tests-", dir="/dev/shm")
        yield LocalBackend(root)
        shutil.rmtree(root)


class TestDictionary(StoreContract):
    """The store that other tests stand on keeps the same promises."""

    large_bytes = SOME_BYTES

    @pytest.fixture
    def backend(self) -> Backend:
        return DictBackend()


class TestFsspecMemory(StoreContract):
    large_bytes = SOME_BYTES

    @pytest.fixture
    def backend(self) -> Backend:
        return FsspecMemoryBackend()


class TestSeaweedfsByS3fs(StoreContract):
    race_rounds = 2  # its distributed lock makes 16 racers wait for seconds

    @pytest.fixture
    def backend(self, seaweedfs: Server) -> Backend:
        return S3Backend(seaweedfs, "fsspec")


class TestSeaweedfsByObstore(StoreContract):
    race_rounds = 2
    many_objects = 50

    @pytest.fixture
    def backend(self, seaweedfs: Server) -> Backend:
        return S3Backend(seaweedfs, "obstore")


class OnMoto(StoreContract):
    """moto's server does in two steps what a storage does in one: it has let two racing creators win, and answered a
    reader 500, or with no bytes, while an object was replaced. It is not asked for these promises, which SeaweedFS and
    fake-gcs-server keep. As it ignores the condition of a copy, nothing is copied.
    """

    def test_racing_creators_have_exactly_one_winner(self, backend: Backend) -> None:
        pytest.skip("moto's server does not create in one step")

    def test_no_reader_sees_a_part(self, backend: Backend) -> None:
        pytest.skip("moto's server does not replace in one step")


class TestMotoByS3fs(OnMoto):
    many_objects = 50  # a slow server; paging and large objects are tried on SeaweedFS
    large_bytes = SOME_BYTES

    @pytest.fixture
    def backend(self, moto: Server) -> Backend:
        return S3Backend(moto, "fsspec")


class TestMotoByObstore(OnMoto):
    many_objects = 1_100  # paging and bulk deletion by obstore are tried here
    large_bytes = SOME_BYTES

    @pytest.fixture
    def backend(self, moto: Server) -> Backend:
        return S3Backend(moto, "obstore")


class TestFakeGcsByGcsfs(StoreContract):
    @pytest.fixture
    def backend(self, fake_gcs: Server) -> Backend:
        return GcsBackend(fake_gcs)


class TestGcsXmlByObstore(StoreContract):
    """obstore writes to Google by the XML API alone, which fake-gcs-server lacks: against our own reading of it, and of
    the condition of a copy, which the other ignores."""

    large_bytes = SOME_BYTES
    many_objects = 1_100

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with GcsXmlBackend.serving() as backend:
            yield backend


def test_what_is_asked_to_copy(tmp_path: Path, seaweedfs: Server, fake_gcs: Server) -> None:
    """The contract asks for copies where the store says that it can."""
    backends: list[Backend] = [LocalBackend(str(tmp_path)), DictBackend(), GcsBackend(fake_gcs)]
    backends += [S3Backend(seaweedfs, client) for client in ("fsspec", "obstore")]
    for backend in backends:
        assert can_copy(backend.open())
    assert not can_copy(FsspecMemoryBackend().open())
