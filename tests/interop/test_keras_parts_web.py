"""What Keras saved as several files on a web server, where a query may be what opens the door."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptflow
from ckptflow.errors import (
    CkptflowError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    UnsupportedStateError,
    UsageError,
)
from ckptflow.places import http as http_module
from ckptflow.places.names import folder_of, in_folder
from ckptflow.storage.retry import Retries

GIB = 2**30
QUERY = "sig=PLANTED/0123456789/x&v=3"


class Web(http.server.SimpleHTTPRequestHandler):
    """Files for who has the query; `refused` are what nobody gets, with the status that is answered."""

    def __init__(self, *arguments: Any, refused: dict[str, int], asked: list[str], **how: Any) -> None:
        self._refused, self._asked = refused, asked
        super().__init__(*arguments, **how)

    def do_GET(self) -> None:
        self._asked.append(self.path)
        name, _, query = self.path.partition("?")
        status = self._refused.get(name.rpartition("/")[2], 200 if query == QUERY else 403)
        if status == 200:
            super().do_GET()
        else:
            self.send_error(status)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def web(folder: Path, refused: dict[str, int] | None = None, asked: list[str] | None = None) -> Iterator[str]:
    """What is asked for goes into `asked`."""
    handler = partial(Web, directory=str(folder), refused=refused or {}, asked=[] if asked is None else asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "Retries", lambda **_: Retries(max_tries=2, first_wait_s=0.01))


def make() -> Any:
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(8)])


@pytest.fixture(scope="module")
def trained() -> Any:
    return make()


@pytest.fixture(scope="module")
def folder(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharded weights whose name a URL has to escape, and whole ones with the number of an epoch."""
    path: Path = tmp_path_factory.mktemp("web")
    trained.save_weights(str(path / "w 1.weights.json"), max_shard_size=600 / GIB)
    trained.save_weights(str(path / "epoch_00003.weights.h5"))
    assert (path / "w 1_00001.weights.h5").exists()
    return path


def test_what_lies_beside_is_asked_for_with_the_query(folder: Path, trained: Any, tmp_path: Path) -> None:
    with web(folder) as url:
        for name in ("w%201.weights.json", "epoch_00003.weights.h5"):
            model = make()
            ckptflow.import_model(f"{url}/{name}?{QUERY}", tmp_path / name, model=model)
            assert all(map(np.array_equal, model.get_weights(), trained.get_weights()))
        with pytest.raises(UsageError, match=r"/w%201_00000\.weights\.h5\S* has a part of the weights") as caught:
            ckptflow.import_model(f"{url}/w%201_00000.weights.h5?{QUERY}", tmp_path / "run", model=make())
        assert "PLANTED" not in str(caught.value)


def test_a_shard_that_is_not_there_is_named_without_the_query(folder: Path, tmp_path: Path) -> None:
    with (
        web(folder, {"w%201_00001.weights.h5": 404}) as url,
        pytest.raises(ObjectNotFoundError, match="w%201_00001") as caught,
    ):
        ckptflow.import_model(f"{url}/w%201.weights.json?{QUERY}", tmp_path / "run", model=make())
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(("status", "error"), [(403, StorageAccessError), (503, StorageUnavailableError)])
def test_an_index_that_nobody_can_read_is_not_one_that_is_not_there(
    status: int, error: type[StorageError], folder: Path, tmp_path: Path
) -> None:
    with (
        web(folder, {"w%201.weights.json": status}) as url,
        pytest.raises(error, match=r"w%201_00000.*whether w 1\.weights\.json beside it says so") as caught,
    ):
        ckptflow.import_model(f"{url}/w%201_00000.weights.h5?{QUERY}", tmp_path / "run")
    assert "PLANTED" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_url_for_one_file_alone(folder: Path, trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its signature does not fit what lies beside it. Who asks for all weights of a model gets all of them, or none."""
    with web(folder, {"w%201.weights.json": 403, "epoch.weights.json": 403}) as url:
        model = make()
        ckptflow.import_model(f"{url}/epoch_00003.weights.h5?{QUERY}", tmp_path / "whole", model=model)
        assert all(map(np.array_equal, model.get_weights(), trained.get_weights()))
        (said,) = [message for message in caplog.messages if "may have a part" in message]
        assert "PLANTED" not in said
        part = f"{url}/w%201_00000.weights.h5?{QUERY}"
        model = make()
        before = model.get_weights()
        with pytest.raises(CkptflowError, match="dense"):
            ckptflow.import_model(part, tmp_path / "part", model=model)
        with pytest.raises(StorageAccessError, match="or give model="):
            ckptflow.import_model(part, tmp_path / "part", model=model, partial=True)
        with pytest.raises(CkptflowError, match="dense"):
            ckptflow.import_model(part, tmp_path / "part", model=model, rename=lambda name: name)
        assert all(map(np.array_equal, model.get_weights(), before))
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("query", ["", "?token=PLANTED", "?download=true#top"])
@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("m.ckpt-10.meta", UsageError, "is one file of a TensorFlow checkpoint"),
        ("m.ckpt-10.index", UsageError, "is one file of a TensorFlow checkpoint"),
        ("m.ckpt-10.data-00000-of-00001", UsageError, "is one file of a TensorFlow checkpoint"),
        ("m.tflite", UnsupportedStateError, "cannot start from the format 'tflite'"),
    ],
)
def test_what_a_name_tells_is_told_before_anything_is_fetched(
    name: str, error: type[CkptflowError], match: str, query: str, tmp_path: Path
) -> None:
    asked: list[str] = []
    with web(tmp_path, asked=asked) as url, pytest.raises(error, match=match) as caught:
        ckptflow.import_model(f"{url}/{name}{query}", tmp_path / "run")
    assert not asked
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected", "beside"),
    [
        ("/a/b", "/a", "/a/c"),
        ("b", "", "c"),
        ("s3://k/a?b/c", "s3://k/a?b", "s3://k/a?b/c"),
        ("http://h/a/b?s=x/y", "http://h/a?s=x/y", "http://h/a/c?s=x/y"),
        ("http://h/b#e/f", "http://h#e/f", "http://h/c#e/f"),
    ],
)
def test_folders_of_urls(url: str, expected: str, beside: str) -> None:
    assert folder_of(url) == expected
    assert in_folder(folder_of(url), "c") == beside
