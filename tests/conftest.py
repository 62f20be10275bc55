"""What every test stands on: an environment without anyone's credentials, real servers, repeatable random tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from tests import servers

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True, scope="session")
def _no_credentials_of_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may find real credentials, nor ask a cloud's metadata service for them."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_", "CLOUDSDK_", "FSSPEC_")):
            patch.delenv(name)
    patch.setenv("HOME", str(home))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", str(home / "no-aws-config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "no-aws-credentials"))
    patch.setenv("NO_GCE_CHECK", "true")
    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_seed_is_left_behind() -> Iterator[None]:
    """A seed that one test has set for the process would decide the order of a later one's `shuffle`."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        if context.global_seed() is not None:
            context.set_global_seed(None)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[servers.Server]:
    """A real S3 server."""
    with servers.seaweedfs() as server:
        server.make_bucket("ckptflow-tests")
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[servers.Server]:
    """AWS's own answers and error codes."""
    with servers.moto() as server:
        server.make_bucket("ckptflow-tests")
        yield server


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[servers.Server]:
    """Google's storage API."""
    with servers.fake_gcs() as server:
        server.make_bucket("ckptflow-tests")
        yield server
