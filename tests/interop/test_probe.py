"""Foreign files whose parsers abort, take without end, or never end: an error, and the process that asks lives on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

from ckptflow.errors import (
    CkptflowError,
    CorruptCheckpointError,
    StateMismatchError,
    StorageAccessError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.interop.tensorflow.checkpoint import read_bundle
from ckptflow.interop.tensorflow.saved_model import read_saved_model
from ckptflow.interop.untrusted import budget, probe
from ckptflow.printable import lines
from ckptflow.state.limits import VariablesRefusedError, machine_bytes
from tests.interop import hostile_bundles
from tests.interop.bundles import Index, varint
from tests.processes import run_python
from tests.zygote import PROBE

START = probe.start  # before it is replaced by a fork


def harm(path: str, *, what: str) -> None:
    """What a parser may do, for a process of its own."""
    match what:
        case "abort":
            os.abort()
        case "leave":
            os._exit(7)
        case "take":
            taken = bytearray(2**32)
            taken[:: 2**12] = bytes(2**20)
        case "turn":
            while True:
                pass
        case "sleep":
            import time

            time.sleep(600)
        case "write":
            Path(path).with_name("written").write_text("x")
        case "remove":
            os.unlink(path)
        case "run":
            os.execv("/bin/touch", ["touch", str(Path(path).with_name("written"))])
        case "connect":
            import socket

            socket.create_connection(("127.0.0.1", int(Path(path).read_text())), 5)
        case "swallow":
            with contextlib.suppress(BaseException):
                bytearray(2**40)
        case "swallow in a thread":
            thread = threading.Thread(target=harm, args=(path,), kwargs={"what": "swallow"})
            thread.start()
            thread.join()
        case "swallow and need":
            try:
                bytearray(2**40)
            except MemoryError:
                error = UsageError("something else")
            raise error
        case "need":
            raise UsageError("a module\x1b of yours" + "!" * 2**20)
        case "mismatch":
            raise StateMismatchError(lines("one", "two"))
        case "refuse":
            raise VariablesRefusedError("too much")
        case "cannot read":
            try:
                raise PermissionError(errno.EACCES, "no", path)
            except PermissionError as error:
                raise StorageAccessError(f"{path} cannot be read") from error
        case "fail":
            raise ZeroDivisionError("by that")
        case "say":
            print("{}")
            raise CorruptCheckpointError("in these words")


def check(path: Path, what: str) -> None:
    probe.check("tests.interop.test_probe:harm", str(path), [str(path)], what=what, arguments={"what": what})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("x")
    return path


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("abort", "killed by signal 6"),
        ("leave", "exit code 7"),
        ("take", rf"takes more than [\d,]+ bytes of memory.*{budget.MEMORY_VARIABLE}"),
        ("turn", rf"no end within 1 s.*{budget.TIME_VARIABLE}"),
        ("sleep", "no end within 1 s"),
        ("say", "^in these words$"),
        ("fail", "fails with ZeroDivisionError: by that"),
        *((what, "bytes of memory") for what in ("swallow", "swallow in a thread", "swallow and need")),
    ],
)
def test_what_becomes_of_a_reader(what: str, words: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits_s = {"turn": "1", "sleep": "1", "leave": "9" * 18}  # the last: more than the kernel waits for at a time
    monkeypatch.setenv(budget.TIME_VARIABLE, limits_s.get(what, "60"))
    with pytest.raises(CorruptCheckpointError, match=words):
        check(file, what)


@pytest.mark.parametrize("what", ["write", "remove", "run", "connect"])
def test_a_reader_changes_nothing(what: str, file: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        file.write_text(str(server.getsockname()[1]))
        with pytest.raises(CorruptCheckpointError, match="fails with PermissionError"):
            check(file, what)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert [each.name for each in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("need", UsageError, r"^a module\\x1b of yours!{5000,10000}$"),
        ("mismatch", StateMismatchError, "^one\ntwo$"),
        ("refuse", UsageError, "^too much$"),
        ("cannot read", StorageAccessError, "cannot be read$"),
    ],
)
def test_what_a_reader_says_is_raised(what: str, kind: type[CkptflowError], words: str, file: Path) -> None:
    """A process that has another state may go on where the reader stopped, and without limits."""
    for _ in range(2):  # nor is it remembered as a file that passed
        with pytest.raises(kind, match=words) as raised:
            check(file, what)
        assert type(raised.value) is kind


def without_looking(path: str) -> str:
    return probe.UNTRIED


def test_a_reader_that_cannot_try_says_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    probe.check("tests.interop.test_probe:without_looking", str(file), [str(file)])
    assert "needs what this program alone has" in caplog.text


def compare(folder: str) -> None:
    """Dies of two files that differ."""
    if (Path(folder) / "one").read_text() != (Path(folder) / "two").read_text():
        os.abort()


def test_files_pass_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_two(folder: Path, names: tuple[str, ...] = ("one", "two")) -> None:
        files = [str(folder / name) for name in names]
        probe.check("tests.interop.test_probe:compare", str(folder), files)

    for text in ("x", "y"):
        (tmp_path / text).mkdir()
        for name in ("one", "two"):
            (tmp_path / text / name).write_text(text)
        check_two(tmp_path / text)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "one").symlink_to(tmp_path / "x" / "one")
    (mixed / "two").symlink_to(tmp_path / "y" / "two")
    with pytest.raises(CorruptCheckpointError, match="killed by signal 6"):
        check_two(mixed)
    monkeypatch.setattr(probe, "start", lambda *_: pytest.fail("a process is started"))
    check_two(tmp_path / "x")
    check_two(tmp_path / "x", ("two",))  # a part of what was read together, as the variables of a SavedModel


@pytest.mark.parametrize("interpreter", ["missing", "forbidden", "no program", "one that ends"])
def test_where_no_other_python_can_be_had(
    interpreter: str, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file passes, and that is logged: none has a say in it."""
    monkeypatch.setattr(probe, "start", START)
    program = file.with_name("python")
    if interpreter != "missing":
        program.write_text("#!/bin/sh\n" if interpreter == "one that ends" else "no program")
        program.chmod(0o644 if interpreter == "forbidden" else 0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    check(file, "abort")
    assert "is read without another process having read it first" in caplog.text


def test_what_this_machine_has_no_room_for_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "start", START)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), before[1]))
        try:
            with pytest.raises(StorageUnavailableError, match="start a process that reads it first"):
                check(file, "abort")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limits_are_as_large_as_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget.unpacked_bytes(10) < budget.unpacked_bytes(10**9)
    assert budget.parser_bytes(2**60) < machine_bytes() + 2**30  # of a file with holes, or one that is claimed
    with budget.one_source(10):
        assert budget.unpacked_bytes(10**9) == budget.unpacked_bytes(10)
        assert budget.parser_bytes(10**12) < 2**30
    monkeypatch.setenv(budget.MEMORY_VARIABLE, "77")
    assert budget.unpacked_bytes(10) == budget.parser_bytes(10) == 77
    for wrong in ("0", "-1", "a lot", "9" * 30):
        monkeypatch.setenv(budget.MEMORY_VARIABLE, wrong)
        with pytest.raises(UsageError, match=budget.MEMORY_VARIABLE):
            budget.unpacked_bytes(10)


# Checkpoints of TensorFlow's


def put(folder: Path, index: bytes, data: bytes) -> str:
    (folder / "bad.index").write_bytes(index)
    (folder / "bad.data-00000-of-00001").write_bytes(data)
    return str(folder / "bad")


def read_all(prefix: str) -> None:
    found = read_bundle(prefix)
    for name in found.infos:
        found.read(name)


SMALL = {
    "an index that is said to be huge": Index({b"": b""}, index_handle=(8, 2**32)),
    "a block that is said to be huge": Index({b"": b""}, data_handle=(0, 2**32)),
    "a packed block that is said to be huge": Index({}, block_type=1, raw_block=varint(2**32 - 1) + bytes(8)),
    "a shape past any number": Index(
        {b"": b"\x08\x01", b"k": b"\x08\x01\x12\x18" + (b"\x12\x0a\x08" + varint(2**62)) * 2}
    ),
}


@pytest.mark.parametrize("what", SMALL)
def test_a_bundle_of_a_few_bytes(what: str, tmp_path: Path) -> None:
    index = SMALL[what].to_bytes()
    assert len(index) < 250
    with pytest.raises(CorruptCheckpointError, match="bad"):
        read_all(put(tmp_path, index, bytes(64)))


def torment(folder: Path, numbers: range) -> int:
    """How many of the bundles were refused."""
    index, data = hostile_bundles.sound(folder)
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        try:
            read_all(put(folder, *hostile_bundles.mutated(number, index, data)))
        except CkptflowError:
            refused += 1
        except BaseException as error:
            error.add_note(f"bundle {number}")
            raise
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    return refused


def test_some_bundles_that_lie(tmp_path: Path) -> None:
    assert torment(tmp_path, range(20)) > 10


# As it is started, and as SavedModels are read


def test_one_process_is_started_for_a_file(tmp_path: Path) -> None:
    """Not from the current folder, in which a file may be named like a module of Python's."""
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(3, np.float32)
    for name in ("json", "struct", "h5py"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    script = """
import sys
sys.path[:] = [each for each in sys.path if each]
started = []
sys.addaudithook(lambda event, arguments: started.append(event) if event in {"subprocess.Popen", "os.system"} else None)
from ckptflow.interop.keras import files as keras_files, weights as keras_weights
for _ in range(3):
    assert not keras_files.is_whole_model("m.weights.h5")
    assert keras_weights.read_weights("m.weights.h5").read("layers/dense/0").tolist() == [1, 1, 1]
print(len(started))
"""
    done = run_python("-c", script, cwd=tmp_path, env={PROBE: ""})
    assert done.stdout.split() == ["1"], done.stderr
    assert not (tmp_path / "mark").exists()


def test_a_saved_model_that_lies(tmp_path: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable(tf.ones([4]))
    tf.saved_model.save(module, str(tmp_path / "m"))
    index = tmp_path / "m" / "variables" / "variables.index"
    good = index.read_bytes()
    assert list(read_saved_model(str(tmp_path / "m")).infos) == ["model/v"]
    for name in ("an index that is said to be huge", "a packed block that is said to be huge"):
        index.write_bytes(SMALL[name].to_bytes())
        with pytest.raises(CorruptCheckpointError):
            read_saved_model(str(tmp_path / "m"))
    index.write_bytes(good)
    (tmp_path / "m" / "fingerprint.pb").unlink()
    (tmp_path / "m" / "saved_model.pb").unlink()
    (tmp_path / "m" / "saved_model.pbtxt").write_text(
        "meta_graphs { graph_def { " + "node { attr { value { func { " * 5000
    )
    with pytest.raises(CorruptCheckpointError):
        read_saved_model(str(tmp_path / "m"))
