"""The `Store` of a simulated worker: small objects are there, of shards the sizes alone; every call takes its time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from benchmarks.scale.kernel import Kernel
from benchmarks.scale.model import PAGE, Storage
from ckptflow.errors import ObjectExistsError, ObjectNotFoundError
from ckptflow.storage.store import Entry


class Bucket:
    """What is stored: the content of small objects, and of shards their sizes, by folder."""

    def __init__(self, kernel: Kernel, storage: Storage, seed: int) -> None:
        self.kernel = kernel
        self.storage = storage
        self.chance = random.Random(seed)
        self.small: dict[str, bytes] = {}
        self.shards: dict[str, dict[str, int]] = {}


class SimulatedStore:
    """One worker's client of a bucket. `requests`: how many it has made, by verb; a listing is one "list", and one
    "page" for each further 1,000 objects; "503" are those that were refused, and made again.
    """

    url = "simulated://root"
    is_create_only = True
    is_object_store = True
    can_copy = False

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.requests: Counter[str] = Counter()

    def put(self, key: str, data: memoryview) -> str | None:
        self._request("put", data.nbytes)
        self._bucket.small[key] = bytes(data)
        return None

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        raise NotImplementedError

    def create(self, key: str, data: memoryview) -> None:
        self._request("put", data.nbytes)
        if key in self._bucket.small:
            raise ObjectExistsError(key)
        self._bucket.small[key] = bytes(data)

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        held = self._bucket.small.get(key)
        self._request("get", 0 if held is None else min(len(held) - start, into.nbytes))
        if held is None:
            raise ObjectNotFoundError(key)
        part = held[start : start + into.nbytes]
        into[: len(part)] = part
        return len(part)

    def list(self, prefix: str = "") -> list[Entry]:
        """What is there when it begins."""
        bucket = self._bucket
        found = [Entry(key, len(data)) for key, data in bucket.small.items() if key.startswith(prefix)]
        for folder, shards in bucket.shards.items():
            if f"{folder}/".startswith(prefix):
                found += [Entry(f"{folder}/{name}", size_bytes) for name, size_bytes in shards.items()]
        self._request("list")
        for _ in range((len(found) - 1) // PAGE):
            self._request("page")
        return found

    def delete(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), PAGE):
            self._request("delete")
            for key in keys[at : at + PAGE]:
                folder, _, name = key.partition("/")
                self._bucket.small.pop(key, None)
                self._bucket.shards.get(folder, {}).pop(name, None)

    def close(self) -> None:
        pass

    def _request(self, verb: str, size_bytes: int = 0) -> None:
        """Takes the time of one request, and of another where it is refused."""
        storage, chance, kernel = self._bucket.storage, self._bucket.chance, self._bucket.kernel
        self.requests[verb] += 1
        tries = 0
        while chance.random() < storage.refused:
            self.requests["503"] += 1
            kernel.sleep(storage.retry_s * 2.0 ** min(tries, 6) * (0.5 + chance.random()))
            tries += 1
        kernel.sleep(storage.request_s(chance, size_bytes))
