"""One reply of a storage goes wrong, in one way, in a job that restores and saves; and what must hold afterwards."""

from __future__ import annotations

import functools
import itertools
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast
from ckptflow.commit.catalog import Summaries, read_manifest
from ckptflow.commit.finding import find_folder, list_counting
from ckptflow.errors import CkptflowError
from ckptflow.reading import OpenCheckpoint
from ckptflow.testing import MemoryStore
from tests import servers
from tests.servers import Server
from tests.storage.proxy import Fault, FaultyProxy

BUCKET = "ckptflow-tests"
VALUES = 3_000  # of the first variable; with the second two shards
BEFORE, SAVED = (10, 20), 30
_numbers = itertools.count()


@dataclass
class Outcome:
    """What a job that met one fault has got, and what it was told."""

    restored: int | None = None  # whose values the state held after a restore that returned
    is_acknowledged: bool = False
    errors: list[BaseException] = field(default_factory=list)


@dataclass
class Lab:
    """A server, the proxy before it, a client, and a root that every trial begins with."""

    server: Server
    proxy: FaultyProxy
    client: str
    objects: dict[str, bytes] = field(default_factory=dict)
    spoilt: str = ""  # the request that the last trial's fault struck

    def url(self, name: str) -> str:
        scheme = "gs" if self.server.kind == "fake-gcs" else "s3"
        return f"{scheme}://{BUCKET}/replies-{self.client}/{name}"

    def options(self, endpoint: str) -> dict[str, Any]:
        options = dict(self.server.storage_options)
        if self.server.kind == "fake-gcs":
            return {**options, "endpoint_url": endpoint, "client": self.client}
        return {
            **options,
            "client_kwargs": {**options["client_kwargs"], "endpoint_url": endpoint},
            "client": self.client,
        }

    def direct(self) -> dict[str, Any]:
        return self.options(self.server.endpoint)

    def prepare(self) -> None:
        """Makes the root that trials begin with: two checkpoints, of which the newer one counts."""
        state = make_state()
        with CheckpointManager(self.url("base"), state, keep=KeepLast(2), storage_options=self.direct()) as manager:
            for step in BEFORE:
                fill(state, step)
                manager.save(step)
                manager.wait()
        self.objects = dict(self._read("base"))

    def count_requests(self) -> int:
        """How many there are where nothing goes wrong."""
        self.proxy.requests.clear()
        outcome = self.run(self._new_root())
        assert outcome == Outcome(20, is_acknowledged=True), outcome
        return len(self.proxy.requests)

    def trial(self, fault: Fault, number: int) -> Outcome:
        """Does `fault` to the request `number` of a job, and holds what is there afterwards to what was told."""
        name = self._new_root()
        self.proxy.requests.clear()
        self.proxy.spoil(fault, skip=number)
        try:
            outcome = self.run(name)
        finally:
            self.proxy.spoil(fault, times=0)
            self.spoilt = self.proxy.requests[number] if len(self.proxy.requests) > number else "no request"
        self.judge(name, outcome)
        return outcome

    def run(self, name: str) -> Outcome:
        """The job: restores the newest and saves another."""
        outcome, state = Outcome(), make_state()
        try:
            options = self.options(self.proxy.endpoint)
            with CheckpointManager(self.url(name), state, keep=KeepLast(2), storage_options=options) as manager:
                manager.restore_latest()
                outcome.restored = step_of(state)
                fill(state, SAVED)
                manager.save(SAVED)
                manager.wait()
                outcome.is_acknowledged = True
        except Exception as error:
            outcome.errors.append(error)
        return outcome

    def judge(self, name: str, outcome: Outcome) -> None:
        for error in outcome.errors:
            assert isinstance(error, CkptflowError), f"a raw error left the library: {error!r}"
        assert outcome.is_acknowledged or outcome.errors, "failed without a word"
        assert outcome.restored in (20, None), f"step {outcome.restored} was restored, and 20 is sound"
        store = MemoryStore(dict(self._read(name)))  # read behind the client's back
        found = list_counting(store, Summaries(store))
        steps = [each.step for each in found]
        assert steps, "nothing is left"
        assert steps[-1] == SAVED if outcome.is_acknowledged else steps[-1] in (20, SAVED), steps
        with OpenCheckpoint(store, read_manifest(store, find_folder(store, Summaries(store), None))) as checkpoint:
            assert checkpoint.verify() == []
            for key in ("a", "b"):
                assert np.all(checkpoint[key] == steps[-1]), f"values of step {steps[-1]} are wrong"

    # ---- behind the store's back

    def _new_root(self) -> str:
        name = f"{next(_numbers)}"
        for key, data in self.objects.items():
            self._write(f"replies-{self.client}/{name}/{key}", data)
        return name

    @functools.cached_property
    def _s3(self) -> Any:
        return servers.s3_client(self.server)

    def _write(self, key: str, data: bytes) -> None:
        if self.server.kind == "fake-gcs":
            query = f"uploadType=media&name={urllib.parse.quote(key, safe='')}"
            servers.request(f"{self.server.endpoint}/upload/storage/v1/b/{BUCKET}/o?{query}", "POST", data)
        else:
            self._s3.put_object(Bucket=BUCKET, Key=key, Body=data)

    def _read(self, name: str) -> Iterator[tuple[str, bytes]]:
        prefix = f"replies-{self.client}/{name}/"
        if self.server.kind == "fake-gcs":
            base = f"{self.server.endpoint}/storage/v1/b/{BUCKET}/o"
            page = json.loads(servers.request(f"{base}?prefix={urllib.parse.quote(prefix, safe='')}"))
            for each in page.get("items", []):
                yield (
                    each["name"].removeprefix(prefix),
                    servers.request(f"{base}/{urllib.parse.quote(each['name'], safe='')}?alt=media"),
                )
            return
        for each in self._s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", []):
            body = self._s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
            yield each["Key"].removeprefix(prefix), body


def make_state() -> dict[str, Any]:
    return {"a": tf.Variable(tf.zeros([VALUES])), "b": tf.Variable(tf.zeros([7], tf.float64))}


def fill(state: dict[str, Any], step: int) -> None:
    for variable in state.values():
        variable.assign(tf.fill(variable.shape, tf.cast(step, variable.dtype)))


def step_of(state: dict[str, Any]) -> int:
    """The step whose values the state holds; -1 for anything else."""
    values = {float(value) for variable in state.values() for value in np.unique(variable.numpy())}
    return int(values.pop()) if len(values) == 1 else -1
