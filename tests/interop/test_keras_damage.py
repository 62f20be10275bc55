"""Files that are cut short, flipped, or made to do harm: refused, in words, before Keras reads a value."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from ckptflow.errors import CkptflowError, CorruptCheckpointError, ObjectNotFoundError, UsageError
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.keras import provenance as keras_provenance
from ckptflow.interop.keras import weights as keras_weights
from ckptflow.interop.untrusted import probe, zips
from ckptflow.interop.untrusted.budget import TIME_VARIABLE
from tests.interop import keras_configs
from tests.interop.keras_readers import ORIGIN, write_all
from tests.interop.models import KERASES

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
KINDS = ("keras", "h5", "weights")


def make(framework: str) -> Any:
    """A small model."""
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(4), kit.layers.Dense(2)], name="small")
    model.compile("adam", "mse")
    return model


@pytest.fixture(scope="module", params=KERASES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """A model's files, by kind."""
    paths = write_all(make(request.param), "model", tmp_path_factory.mktemp("written"))
    return request.param, {kind: path.read_bytes() for kind, path in paths.items()}


def put(tmp_path: Path, kind: str, data: bytes) -> str:
    """A file of these bytes with the name that it should have."""
    path = tmp_path / {"keras": "m.keras", "h5": "m.h5", "weights": "m.weights.h5"}[kind]
    path.write_bytes(data)
    return str(path)


def read(kind: str, path: str, framework: str) -> None:
    """Everything that a file can be read as."""
    if kind == "weights":
        found = keras_weights.read_weights(path)
        for name in found.infos:
            found.read(name)
        keras_weights.load_weights(path, make(framework))
    else:
        keras_files.read_model(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_short(kind: str, written: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    framework, files = written
    data = files[kind]
    for size in (0, 7, len(data) // 3, len(data) - 1):
        with pytest.raises(CkptflowError, match=r"damaged|not a valid zip|not what it says|neither"):
            read(kind, put(tmp_path, kind, data[:size]), framework)
    for other in (b"PK\x03\x04" + bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(200), b"hello" * 100):
        with pytest.raises((CorruptCheckpointError, UsageError)):
            read(kind, put(tmp_path, kind, other), framework)
        with pytest.raises(CorruptCheckpointError):
            keras_provenance.read_provenance(io.BytesIO(other), "bytes")
    with pytest.raises(ObjectNotFoundError):
        read(kind, str(tmp_path / "nothing.keras"), framework)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_are_found_or_do_no_harm(
    kind: str, written: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    framework, files = written
    data = files[kind]
    generator = np.random.default_rng(7)
    where = {int(each) for each in generator.integers(0, len(data), 4)}
    found = 0
    for position in sorted(where | {8, 24, 37}):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(generator.integers(0, 8))
        try:
            read(kind, put(tmp_path, kind, bytes(flipped)), framework)
        except CkptflowError:
            found += 1
    if kind == "keras":  # everything in it has a checksum; HDF5's values have none
        assert found >= len(where) - 2
    assert found


def rewrite(data: bytes, tmp_path: Path, change: Callable[[dict[str, bytes]], None]) -> str:
    """A `.keras` with other members."""
    original = tmp_path / "original.keras"
    original.write_bytes(data)
    with zipfile.ZipFile(original) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


@pytest.mark.usefixtures("unprobed")
def test_members_that_should_not_be(written: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    framework, files = written

    def refused(match: str, **members: Any) -> None:
        def change(held: dict[str, bytes]) -> None:
            for name, content in members.items():
                held.pop(name, None) if content is None else held.__setitem__(name, content)

        path = rewrite(files["keras"], tmp_path, change)
        with pytest.raises(CkptflowError, match=match):
            keras_files.read_model(path)
        assert not (tmp_path.parent / "outside").exists()

    refused("config.json", **{"config.json": None})
    refused("not valid JSON", **{"config.json": b"{"})
    refused("not valid JSON", **{"config.json": b"[" * 100_000})
    refused("not a JSON object", **{"config.json": b"[]"})
    refused("framework|config|layer|model", **{"config.json": b"{}"})
    refused("model.weights.h5", **{"model.weights.h5": None})
    refused("damaged", **{"model.weights.h5": b"no HDF5"})
    refused("not a valid zip", **{"../outside": b"x"})
    refused("not a valid zip", **{"/outside": b"x"})
    refused("not a valid zip", **{"assets/../../outside": b"x"})
    refused("npz", **{"model.weights.h5": None, "model.weights.npz": b"x"})
    link = tmp_path / "link.keras"
    with zipfile.ZipFile(link, "w") as archive:
        information = zipfile.ZipInfo("assets")
        information.external_attr = 0o120777 << 16
        archive.writestr(information, "/etc")
        archive.writestr("config.json", "{}")
    with pytest.raises(CorruptCheckpointError, match="not a valid zip"):
        keras_files.read_model(str(link))
    if framework == "keras":
        bomb = tmp_path / "bomb.keras"
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("config.json", "w") as file:
            for _ in range(400):
                file.write(bytes(2**20))
        with pytest.raises(CorruptCheckpointError, match="not a valid zip"):
            keras_files.read_model(str(bomb))


@pytest.mark.usefixtures("unprobed")
def test_a_packed_archive_is_read_as_well(written: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    _, files = written
    original = put(tmp_path, "keras", files["keras"])
    packed = tmp_path / "packed.keras"
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    data = np.ones((1, 3), "f4")
    expected = np.asarray(keras_files.read_model(original)(data))
    assert np.array_equal(keras_files.read_model(str(packed))(data), expected)


def _dataset_of(file: h5py.File) -> str:
    found: list[str] = []
    file.visititems(lambda name, obj: found.append(name) if isinstance(obj, h5py.Dataset) and obj.shape else None)
    return min(found)


def _replace(file: h5py.File, make_other: Callable[[h5py.Group, str, Any], None]) -> None:
    name = _dataset_of(file)
    shape = file[name].shape
    del file[name]
    make_other(file, name, shape)


def _virtual(file: h5py.Group, name: str, shape: Any) -> None:
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource("secret.h5", "secret", shape)
    file.create_virtual_dataset(name, layout)


def _external(file: h5py.Group, name: str, shape: Any) -> None:
    file.create_dataset(name, shape, "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def _deep(file: h5py.Group, name: str, shape: Any) -> None:
    file[name] = np.zeros(shape, "f4")
    group = file.create_group("deep")
    for _ in range(100):
        group = group.create_group("x")


def _cycle(file: h5py.Group, name: str, shape: Any) -> None:
    file[name] = np.zeros(shape, "f4")
    group = file.create_group("again")
    group["again"] = group


def _many_names(file: h5py.Group, name: str, shape: Any) -> None:
    file[name] = np.zeros(shape, "f4")
    file.create_dataset("wide", (2**24 - 8,), "f4", chunks=(2**20,), compression="gzip")
    for number in range(600):
        file[f"name{number}"] = file["wide"]


HOSTILE: dict[str, tuple[str, Callable[[h5py.File], None]]] = {
    "an external link": ("ExternalLink", lambda file: _replace(
        file, lambda f, name, _: f.__setitem__(name, h5py.ExternalLink("secret.h5", "/secret")))),
    "a soft link": ("SoftLink", lambda file: _replace(
        file, lambda f, name, _: f.__setitem__(name, h5py.SoftLink("/elsewhere")))),
    "a virtual dataset": ("another file", lambda file: _replace(file, _virtual)),
    "an external dataset": ("another file", lambda file: _replace(file, _external)),
    "a huge shape": ("asks for|take", lambda file: _replace(
        file, lambda f, name, _: f.create_dataset(name, (2**40, 2**10), "f4", chunks=(1, 2**10)))),
    "a shape past any number": ("asks for|take", lambda file: _replace(
        file, lambda f, name, _: f.create_dataset(name, (2**62, 2**62), "f8", chunks=(1, 1)))),
    "packed zeros": ("asks for|take", lambda file: _replace(
        file, lambda f, name, _: f.create_dataset(name, (2**36,), "u1", chunks=(2**20,), compression="gzip"))),
    "an object reference": ("dtype", lambda file: _replace(
        file, lambda f, name, _: f.create_dataset(name, (1,), h5py.ref_dtype))),
    "a compound": ("dtype", lambda file: _replace(
        file, lambda f, name, _: f.create_dataset(name, (1,), [("a", "f4"), ("b", "i8")]))),
    "an empty dataset": ("no shape", lambda file: _replace(
        file, lambda f, name, _: f.__setitem__(name, h5py.Empty("f4")))),
    "a type of its own": ("neither", lambda file: file.__setitem__("type", np.dtype("f8"))),
    "groups without end": ("nested", lambda file: _replace(file, _deep)),
    "a group in itself": ("second path", lambda file: _replace(file, _cycle)),
    "one dataset under many names": ("take", lambda file: _replace(file, _many_names)),
}  # fmt: skip


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("what", HOSTILE)
def test_hdf5_that_leads_out_of_the_file_or_asks_for_too_much(
    what: str, written: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    framework, files = written
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["secret"] = np.full((4, 2), 42.0, "f4")
    match, change = HOSTILE[what]
    for kind in ("h5", "weights"):
        path = put(tmp_path, kind, files[kind])
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(CorruptCheckpointError, match=match):
            read(kind, path, framework)
    if framework == "keras":
        inside = Path(put(tmp_path, "weights", files["weights"]))
        with h5py.File(inside, "r+") as file:
            change(file)
        archive = rewrite(files["keras"], tmp_path, lambda held: held.update({"model.weights.h5": inside.read_bytes()}))
        with pytest.raises(CorruptCheckpointError, match=match):
            keras_files.read_model(archive)
        with pytest.raises(CorruptCheckpointError, match=match):
            keras_weights.load_weights(archive, make(framework))


def test_a_shape_past_any_number_is_not_multiplied_out(tmp_path: Path) -> None:
    path = str(tmp_path / "x.weights.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/0", (2**62, 2**62), "f8", chunks=(1, 1))
    with pytest.raises(CorruptCheckpointError):
        keras_weights.read_weights(path)


@pytest.mark.parametrize("framework", KERASES)
def test_marshalled_code_is_for_those_who_say_so(framework: str, tmp_path: Path) -> None:
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Lambda(lambda x: x + 41.0, output_shape=(3,))])
    for suffix, write in ((".keras", keras_files.write_keras), (".h5", keras_files.write_h5)):
        path = str(tmp_path / f"model{suffix}")
        write(path, model, ORIGIN)
        with pytest.raises(UsageError, match="--unsafe"):
            keras_files.read_model(path)
        if suffix == ".h5" and framework == "keras":
            continue  # stock Keras 3 does not read the lambda that it writes there
        made = keras_files.read_model(path, unsafe=True)
        assert np.asarray(made(np.ones((1, 3), "f4"))).tolist() == [[42.0] * 3]


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("framework", KERASES)
def test_hostile_configs_in_files(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    keras_configs.place_probes(tmp_path, mark)
    monkeypatch.syspath_prepend(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("a\nb\n")
    paths = write_all(make(framework), "model", tmp_path)
    for name, config in keras_configs.hostile(framework, str(secret)).items():
        path = rewrite(
            paths["keras"].read_bytes(), tmp_path, lambda held, config=config: held.update(  # type: ignore[misc]
                {"config.json": json.dumps(config).encode()})
        )  # fmt: skip
        with pytest.raises(UsageError, match="nothing was run"):
            keras_files.read_model(path)
        with h5py.File(paths["h5"], "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(UsageError, match="nothing was run"):
            keras_files.read_model(str(paths["h5"]))
        assert not mark.exists(), name
    assert secret.read_text() == "a\nb\n"


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("framework", KERASES)
def test_a_config_that_asks_for_more_than_the_file_holds(framework: str, tmp_path: Path) -> None:
    paths = write_all(make(framework), "model", tmp_path)

    def grow(config: dict[str, Any]) -> bytes:
        config["config"]["layers"][1]["config"]["units"] = 10**12
        return json.dumps(config).encode()

    path = rewrite(paths["keras"].read_bytes(), tmp_path, lambda held: held.update(
        {"config.json": grow(json.loads(held["config.json"]))}))  # fmt: skip
    with pytest.raises(UsageError, match="asks for variables"):
        keras_files.read_model(path)
    with h5py.File(paths["h5"], "r+") as file:
        file.attrs["model_config"] = grow(json.loads(file.attrs["model_config"])).decode()
    with pytest.raises(UsageError, match="asks for variables"):
        keras_files.read_model(str(paths["h5"]))


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("framework", KERASES)
def test_weights_that_its_own_model_lacks(framework: str, tmp_path: Path) -> None:
    paths = write_all(make(framework), "model", tmp_path)
    inside = tmp_path / "inside.weights.h5"
    inside.write_bytes(paths["weights"].read_bytes())
    with h5py.File(inside, "r+") as file:
        del file["layers/dense_1"]
    path = rewrite(paths["keras"].read_bytes(), tmp_path, lambda held: held.update(
        {"model.weights.h5": inside.read_bytes()}))  # fmt: skip
    with pytest.raises(CkptflowError):
        keras_files.read_model(path)
    with h5py.File(inside, "r+") as file:
        del file["optimizer/vars/0"]
    path = rewrite(paths["keras"].read_bytes(), tmp_path, lambda held: held.update(
        {"model.weights.h5": inside.read_bytes()}))  # fmt: skip
    with pytest.raises(CkptflowError):  # Keras would only warn
        keras_files.read_model(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_hdf5_does_not_survive(
    kind: str, written: tuple[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework, files = written
    path = put(tmp_path, kind, files[kind])
    monkeypatch.setattr(probe, "PROGRAM", "import os; os.write(1, b'\\n'); os.kill(os.getpid(), 11)")
    with pytest.raises(CorruptCheckpointError, match="signal 11"):
        read(kind, path, framework)
    if kind != "keras":
        with pytest.raises(CorruptCheckpointError, match="signal 11"), open(path, "rb") as file:
            keras_provenance.read_provenance(file, path)
        with pytest.raises(CorruptCheckpointError, match=r"^s3://b/m\.h5 .*signal 11"):  # where it lies elsewhere
            keras_provenance.read_provenance(io.BytesIO(Path(path).read_bytes()), "s3://b/m.h5")
    monkeypatch.setattr(probe, "PROGRAM", "import os, time; os.write(1, b'\\n'); time.sleep(60)")
    monkeypatch.setenv(TIME_VARIABLE, "1")
    with pytest.raises(CorruptCheckpointError, match="no end"):
        read(kind, path, framework)
    monkeypatch.undo()
    read(kind, path, framework)
    if kind == "weights":  # a whole model is copied first, and no copy is known from before
        monkeypatch.setattr(probe, "PROGRAM", "import os; os.write(1, b'\\n'); os.kill(os.getpid(), 11)")
        read(kind, path, framework)  # known by now


def test_provenance_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    for value in ("{}", "x" * 100_000, np.zeros(3), b"\xff"):
        with h5py.File(path, "w") as file:
            file.attrs["ckptflow"] = value
        with pytest.raises(CorruptCheckpointError, match="provenance"), path.open("rb") as raw:
            keras_provenance.read_provenance(raw, "m.weights.h5")
    for text in (b"{}", b'{"ckptflow": 3}', b'{"ckptflow": {"step": -1}}', b"[" * 10_000):
        with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
            archive.writestr("metadata.json", text)
        with (tmp_path / "m.keras").open("rb") as raw:
            if text == b"{}":
                assert keras_provenance.read_provenance(raw, "m.keras") is None
                continue
            with pytest.raises(CorruptCheckpointError):
                keras_provenance.read_provenance(raw, "m.keras")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("keras")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    for name, write in (("m.keras", keras_files.write_keras), ("m.h5", keras_files.write_h5),
                        ("m.weights.h5", keras_files.write_weights)):  # fmt: skip
        with pytest.raises(OSError, match="write"):
            write(str(tmp_path / name), model, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_the_provenance_of_an_archive_is_read_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory, and what is packed in it, are bounded before `zipfile` reads them, where the file lies."""
    many, tight = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}", "")
    with zipfile.ZipFile(tight, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("metadata.json", "{}")
    assert keras_provenance.read_provenance(many, "m.keras") is None
    monkeypatch.setattr(zips, "MAX_MEMBERS", 3)
    for file, words in ((many, "5 members"), (tight, "deflate")):
        with pytest.raises(CorruptCheckpointError, match=words):
            keras_provenance.read_provenance(file, "m.keras")
