"""What every test stands on: an environment without anyone's credentials, real servers, repeatable random tests."""

from __future__ import annotations

import gc
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import hypothesis
import pytest

from ckptflow.interop.untrusted import probe
from tests import distributions, servers
from tests.forked import ROOT, Process
from tests.processes import start_python
from tests.stand_in import read_at_start
from tests.untuned import leave_untuned

# For each Python that is started from here, and for this one.
STARTUP = str(ROOT / "tests" / "startup")
if STARTUP not in sys.path:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH")]))
    runpy.run_path(f"{STARTUP}/sitecustomize.py")

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


@pytest.fixture(autouse=True, scope="session")
def _probes_are_forked() -> Iterator[None]:
    """A process that reads a foreign file first is forked from one that has imported TensorFlow."""

    def start(request: BinaryIO, environment: Mapping[str, str], out: BinaryIO) -> Process:
        fixed = read_at_start(environment)
        own = {name: value for name, value in environment.items() if name not in fixed}
        with open(os.devnull, "wb") as nowhere:
            return start_python(["-c", probe.PROGRAM], own, out, nowhere, cwd=Path.cwd(), kind="probe", stdin=request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "start", start)
        yield


@pytest.fixture(autouse=True)
def _no_seed_is_left_behind() -> Iterator[None]:
    """A seed that one test has set for the process would decide the order of a later one's `shuffle`."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        if context.global_seed() is not None:
            context.set_global_seed(None)


@pytest.fixture(autouse=True, scope="module")
def _iterators_end_at_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for where tests are about their positions: see `tests.untuned`."""
    with pytest.MonkeyPatch.context() as patch:
        if "tensorflow" in sys.modules and not getattr(request.module, "ITERATORS_ARE_TUNED", False):
            leave_untuned(patch)
        yield


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into: pytest closes its own to others, whenever a pytest starts."""
    folder = Path(tempfile.mkdtemp(prefix="ckptflow-test-open-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# The servers of a run are shared by all of its processes: where they say where they are, and with whom they end.
_RUN = "CKPTFLOW_TEST_RUN"


def pytest_configure(config: pytest.Config) -> None:
    if _RUN not in os.environ:
        folder = tempfile.mkdtemp(prefix="ckptflow-test-run-")
        os.environ[_RUN] = f"{os.getpid()}:{folder}"
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.__delitem__(_RUN))


# What takes longest, first, where several processes share the files out (`make test`): the last file of a run is short.
SLOWEST = (
    "protocol/test_protocol.py",
    "test_install.py",
    "storage/test_stalls.py",
    "storage/test_contract.py",
    "callbacks/test_several.py",
    "callbacks/test_fit.py",
    "interop/test_architectures.py",
    "protocol/test_mutations.py",
    "test_docs.py",
    "state/test_roundtrip.py",
    "benchmarks/test_suite.py",
    "callbacks/test_data.py",
    "callbacks/test_averages.py",
    "callbacks/test_killed.py",
    "interop/test_doors.py",
    "interop/test_hostile_models.py",
    "matrix/test_matrix.py",
    "interop/test_keras_damage.py",
    "callbacks/test_longer.py",
    "edge/test_lives.py",
    "edge/test_together.py",
    "peers/test_rounds.py",
    "cli/test_one_bad.py",
    "cli/test_bench.py",
    "state/test_configs.py",
    "interop/test_probe_keras.py",
    "cli/test_output.py",
    "interop/test_keras_files.py",
    "state/test_optimizers_go_on.py",
    "manager/test_unbuilt.py",
    "manager/test_no_raw_error.py",
    "cli/test_doctor.py",
    "state/test_traced.py",
    "interop/test_outside.py",
    "storage/test_link.py",
    "chaos/test_damages.py",
    "test_processes.py",
    "callbacks/test_input.py",
    "interop/test_keras_optimizer.py",
    "interop/test_probe_swallowed.py",
    "places/test_files.py",
    "interop/test_saved_model_strict.py",
    "interop/test_saved_model_reading.py",
    "chaos/test_syscalls.py",
    "interop/test_keras_named.py",
    "chaos/test_standstill.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        turns = {ROOT / "tests" / name: number for number, name in enumerate(SLOWEST)}
        items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported is no garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What has been imported by now stays: the collector need not look through it again and again.

    Nor need it look for new garbage 1,000 times in one `fit`: what is to be gone at once is collected by the test.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def _shared(kind: str) -> servers.Server:
    pid, _, folder = os.environ[_RUN].partition(":")
    return servers.shared(kind, folder, int(pid))


@pytest.fixture(scope="session")
def seaweedfs() -> servers.Server:
    """A real S3 server."""
    return _shared("seaweedfs")


@pytest.fixture(scope="session")
def moto() -> servers.Server:
    """AWS's own answers and error codes."""
    return _shared("moto")


@pytest.fixture(scope="session")
def fake_gcs() -> servers.Server:
    """Google's storage API."""
    return _shared("fake-gcs")


@pytest.fixture(scope="session")
def release() -> distributions.Distributions:
    """What is released."""
    return distributions.shared(Path(os.environ[_RUN].partition(":")[2]))
