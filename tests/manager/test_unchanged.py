"""What has not changed is not sent again, and whatever is copied is, bit for bit, what would have been sent."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import crc32c
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptflow import Checkpoint, CheckpointManager, KeepLast, open_checkpoint
from ckptflow.job import session
from ckptflow.state import capture, memory
from ckptflow.storage.opening import open_store
from ckptflow.storage.wrappers import StoreWrapper
from ckptflow.transfer import writer
from tests.servers import Server
from tests.waiting import HANG_S

SIZE = 2**17  # elements, of 512 KiB
SHARD_BYTES = 2**20


def stored(url: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    return open_checkpoint(url, storage_options=dict(options or {}) or None).read([name])[name]


def sent_share(checkpoint: Checkpoint) -> float:
    return 1 - checkpoint.copied_bytes / checkpoint.size_bytes


def frozen_model() -> keras.Model:
    backbone = keras.Sequential([keras.layers.Dense(512, name=f"d{i}") for i in range(4)], name="backbone")
    backbone.trainable = False
    model = keras.Sequential([keras.Input((512,)), backbone, keras.layers.Dense(8, name="head")])
    model.compile("adam", "mse", jit_compile=False, run_eagerly=True)
    return model


def train(model: keras.Model) -> None:
    model.train_on_batch(np.random.default_rng(0).random((4, 512), np.float32), np.ones((4, 8), np.float32))


def inodes(url: str) -> set[int]:
    return {entry.stat().st_ino for entry in os.scandir(url) if entry.name.startswith("shard-")}


def test_a_frozen_backbone_is_written_twice_on_a_disk(tmp_path: Path) -> None:
    """Once for each family, from the first save on, and after a restart not again."""
    model, found = frozen_model(), []
    for _ in range(2):
        with CheckpointManager(tmp_path, {"model": model}, keep=[KeepLast(5)]) as manager:
            last = manager.restore_latest()
            first = last.step + 1 if last else 1
            for step in range(first, first + 4):
                train(model)
                found.append(manager.save(step).result())
    assert [sent_share(each) == 1 for each in found] == [True, True, *[False] * 6]
    assert all(sent_share(each) < 0.06 for each in found[2:])
    newest = [inodes(each.url) for each in found[-5:]]
    assert all(not a & b for a, b in itertools.pairwise(newest))
    assert newest[0] & newest[2] & newest[4]
    assert newest[1] & newest[3]
    for name in ("backbone/d0/kernel", "head/kernel"):
        assert np.array_equal(stored(found[-1].url, f"model/{name}"), weights(model)[name])


def weights(model: keras.Model) -> dict[str, Any]:
    found = {f"backbone/{layer.name}/kernel": layer.kernel.numpy() for layer in model.layers[0].layers}
    return found | {"head/kernel": model.layers[1].kernel.numpy()}


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_on_s3_from_the_second_save_on(seaweedfs: Server, client: str, tmp_path: Path) -> None:
    options = {**seaweedfs.storage_options, "client": client}
    model = frozen_model()
    url, saved = f"s3://ckptflow-tests/unchanged-{client}-{tmp_path.name}", []
    for _ in range(2):
        with CheckpointManager(url, {"model": model}, keep=[KeepLast(1)], storage_options=options) as manager:
            last = manager.restore_latest()
            for step in range(2):
                train(model)
                saved.append(manager.save((last.step if last else 0) + step + 1).result())
    assert [sent_share(each) < 0.06 for each in saved] == [False, True, True, True]
    assert np.array_equal(
        stored(saved[-1].url, "model/backbone/d3/kernel", options), weights(model)["backbone/d3/kernel"]
    )


def test_a_layer_that_thaws_costs_its_shards_once(seaweedfs: Server, tmp_path: Path) -> None:
    """The shards that it was in are written anew at once, it apart from the rest, which is copied from then on."""
    model, saved = frozen_model(), []
    url, options = f"s3://ckptflow-tests/thaw-{tmp_path.name}", seaweedfs.storage_options
    with CheckpointManager(url, {"model": model}, storage_options=options, shard_bytes=2**22) as manager:
        manager.restore_latest()
        for step in range(1, 7):
            if step == 4:
                model.layers[0].layers[3].trainable = True
                model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
            train(model)
            saved.append(manager.save(step).result())
    whole, layer = saved[0].size_bytes, 4 * (512 * 512 + 512)
    sent = [each.size_bytes - each.copied_bytes for each in saved]
    assert max(sent[1:3]) < layer / 4
    assert layer < sent[3] < 0.6 * whole  # one of two shards
    assert max(sent[4:]) < 1.2 * layer
    assert np.array_equal(
        stored(saved[-1].url, "model/backbone/d3/kernel", options), weights(model)["backbone/d3/kernel"]
    )


# ---- bit for bit, whatever changes

Change = Callable[[tf.Variable, int], object]
CHANGES: dict[str, Change] = {
    "left alone": lambda variable, step: None,
    "added to": lambda variable, step: variable.assign_add(tf.ones_like(variable)),
    "given the same": lambda variable, step: variable.assign(variable.read_value() + 0),
    "given its own memory": lambda variable, step: variable.assign(variable.read_value()),
    "scattered": lambda variable, step: variable.scatter_update(
        tf.IndexedSlices(tf.fill([1, *variable.shape[1:]], float(step)), [step % variable.shape[0]])
    ),
    "and back": lambda variable, step: (
        variable.assign_add(tf.ones_like(variable)),
        variable.assign_sub(tf.ones_like(variable)),
    ),
}


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(sorted(CHANGES)), min_size=4, max_size=4),
            st.sampled_from(["", "", "restart", "replace"]),
        ),
        min_size=2,
        max_size=9,
    )
)
@settings(max_examples=25)
def test_whatever_changes(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[str], str]]) -> None:
    """Random ones of four variables are left alone, changed, or replaced; there are restarts. Each is read back."""
    run(tmp_path_factory.mktemp("run"), steps)


def run(root: Path, steps: list[tuple[list[str], str]]) -> list[Checkpoint]:
    state = {f"v{i}": tf.Variable(tf.random.stateless_uniform([SIZE], [i, 1])) for i in range(4)}
    options: dict[str, Any] = {"keep": [KeepLast(3)], "shard_bytes": SHARD_BYTES}
    manager = CheckpointManager(root, state, **options)
    manager.restore_latest()
    saved = []
    for step, (changes, event) in enumerate(steps, 1):
        if event == "restart":
            manager.close()
            state = {name: tf.Variable(tf.zeros_like(variable)) for name, variable in state.items()}
            manager = CheckpointManager(root, state, **options)
            manager.restore_latest()
        if event == "replace":
            state["v0"] = tf.Variable(state["v0"].read_value())
        if event == "reshape":
            state["v1"] = tf.Variable(tf.reshape(state["v1"], [2] * (step % 3) + [-1]))
        for variable, change in zip(state.values(), changes, strict=True):
            CHANGES[change](variable, step)
        saved.append(manager.save(step).result())
        read = open_checkpoint(saved[-1].url).read(list(state))
        for name, variable in state.items():
            assert np.array_equal(read[name], variable.numpy()), (step, name)
    manager.close()
    return saved


def test_while_saves_are_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written or copied before the program has changed what was saved."""
    state = {f"v{i}": tf.Variable(tf.fill([SIZE], float(i))) for i in range(4)}
    has_changed = threading.Event()

    class Late(StoreWrapper):
        def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
            if verb in ("put", "copy"):
                has_changed.wait(HANG_S)
            return call()

    monkeypatch.setattr(session, "open_store", lambda *args: Late(open_store(*args)))
    with CheckpointManager(tmp_path, state, keep=[KeepLast(3)], shard_bytes=SHARD_BYTES) as manager:
        manager.restore_latest()
        for step in range(1, 12):
            has_changed.clear()
            expected = {name: variable.numpy() for name, variable in state.items()}
            saved = manager.save(step)
            for number, variable in enumerate(state.values()):
                if step > 7 or number == 3:  # from then on what was still changes, too, while it is being copied
                    variable.assign_add(tf.ones_like(variable))
            has_changed.set()
            found = open_checkpoint(saved.result().url).read(list(state))
            assert all(np.array_equal(found[name], expected[name]) for name in state), step


def test_memory_that_others_write_to_is_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow adopts what a NumPy function returns; its owner writes there: memory proves nothing from then on."""
    shared = aligned(4 * SIZE)
    table, other = tf.Variable(tf.zeros([4 * SIZE])), tf.Variable(tf.zeros([SIZE]))

    @tf.function
    def refresh() -> None:
        table.assign(tf.ensure_shape(tf.numpy_function(lambda: shared, [], tf.float32), [4 * SIZE]))

    refresh()
    before = memory.memory_of(table.read_value())
    assert before is not None
    assert before.addresses == (shared.ctypes.data,)
    with CheckpointManager(tmp_path, {"table": table, "other": other}, keep=[KeepLast(3)]) as manager:
        manager.restore_latest()
        for step in range(1, 12):
            if step > 7:
                shared += 1
                refresh()
            other.assign_add(tf.ones_like(other))
            saved = manager.save(step).result()
            assert np.array_equal(stored(saved.url, "table"), table.numpy()), step
    assert "other code shares it" in caplog.text


def aligned(count: int) -> Any:
    """As tf.numpy_function takes it over without a copy."""
    memory_bytes = np.zeros(4 * count + 64, np.uint8)
    begin = -memory_bytes.ctypes.data % 64
    return memory_bytes[begin : begin + 4 * count].view(np.float32)


def test_little_that_is_frozen_has_no_shard_of_its_own(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((512,)), keras.layers.Dense(2048), keras.layers.Dense(8, trainable=False)])
    model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.restore_latest()
        for step in range(1, 6):
            train(model)
            saved = manager.save(step).result()
    assert len(inodes(saved.url)) == 1
    assert not saved.copied_bytes


def test_learned_from_what_does_not_change(tmp_path: Path) -> None:
    """Nobody says of these that they are frozen: their shards are apart after two saves, and copied after two more."""
    still = (["left alone", "left alone", "left alone", "added to"], "")
    saved = run(tmp_path, [still] * 7)
    assert [each.copied_bytes > 0 for each in saved] == [False, False, False, False, True, True, True]
    assert sent_share(saved[-1]) < 0.3


def test_what_is_given_the_same_values_once(tmp_path: Path) -> None:
    """As by `set_weights`: it is read once, copied all the same with what is in its shard, and then known again."""
    model = frozen_model()
    with CheckpointManager(tmp_path, {"model": model}, keep=[KeepLast(5)]) as manager:
        manager.restore_latest()
        for step in range(1, 8):
            if step == 4:
                model.layers[0].set_weights(model.layers[0].get_weights())
            train(model)
            saved = manager.save(step).result()
            assert step < 3 or sent_share(saved) < 0.06
        incarnation = manager.session._footing.incarnation
        assert incarnation is not None
        held = {n for n, each in incarnation._saver.unchanged._watched.items() if each.references is not None}
    assert held >= {f"model/backbone/d{i}/kernel" for i in range(4)}


# ---- mutations


def test_an_address_that_nobody_keeps_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was given back is soon another value's: the saves are wrong if only its address is compared."""

    def only_the_address(held: Any) -> memory.Memory | None:
        kept = memory.memory_of(held)
        return None if kept is None else memory.Memory(kept.addresses, ())

    variable, came_back = tf.Variable(tf.zeros([2**20])), []

    def saves(root: Path) -> bool:
        """Whether a save after which the variable was in other memory, and in the same again, is right."""
        with CheckpointManager(root, {"v": variable, "w": tf.Variable(0.0)}, keep=[KeepLast(9)]) as manager:
            manager.restore_latest()
            for step in range(1, 7):
                saved = manager.save(step).result()
            before = memory.memory_of(variable.read_value())
            for number in range(1, 200):
                variable.assign(tf.fill([2**20], float(number)))
                if memory.memory_of(variable.read_value()) == before:
                    break
            came_back.append(memory.memory_of(variable.read_value()) == before)
            for step in range(7, 10):
                saved = manager.save(step).result()
            return bool(np.array_equal(stored(saved.url, "v"), variable.numpy()))

    assert saves(tmp_path / "kept")
    monkeypatch.setattr(capture, "memory_of", only_the_address)
    is_right = saves(tmp_path / "mutated")
    assert came_back[0] is False  # while it is kept, nobody else gets it
    assert not (came_back[1] and is_right)


def test_a_crc32c_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that differ by the polynomial have one crc32c: by the hint they have not changed, by the hash they have."""
    polynomial = np.frombuffer((0x11EDC6F41).to_bytes(5, "big"), np.uint8)  # as bits in the order of the checksum
    reflected = np.packbits(np.unpackbits(polynomial), bitorder="little")

    def saves(root: Path) -> bool:
        variable = tf.Variable(np.zeros(2**20, np.uint8))
        other = tf.Variable(0.0)
        with CheckpointManager(root, {"v": variable, "w": other}, keep=[KeepLast(9)]) as manager:
            manager.restore_latest()
            for step in range(1, 8):
                changed = variable.numpy()
                changed[step * 64 : step * 64 + 5] ^= reflected
                variable.assign(changed)
                saved = manager.save(step).result()
            return bool(np.array_equal(stored(saved.url, "v"), variable.numpy()))

    assert saves(tmp_path / "hashed")
    monkeypatch.setattr(writer, "xxhash", _Crc32c)
    assert not saves(tmp_path / "mutated")


class _Crc32c:
    """In the place of the library."""

    @staticmethod
    def xxh3_128_hexdigest(data: memoryview) -> str:
        return f"{crc32c.crc32c(data):032x}"
