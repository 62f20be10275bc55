"""What is assumed: a storage, a network, prices. Numbers alone, from which a seed makes the same job each time."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 2**20
GB = 10**9
PAGE = 1000  # objects in one reply of a listing
PIECE_BYTES = 16 * MIB  # that one request reads
SHARD_BYTES = 64 * MIB


@dataclass(frozen=True)
class Storage:
    """An object store, as one job meets it.

    A request takes `latency_s` (the median of a lognormal distribution with `sigma`), and its bytes at the rate of one
    connection, as far as the worker's link lets all of its connections have it. `slow` of the requests take
    `slow_times` as long. `refused` of them are answered by 503, and so is what comes beyond `puts_per_s` or
    `gets_per_s`; it is sent again after `retry_s`, then twice that, and so on.
    """

    latency_s: float = 0.02
    sigma: float = 0.3
    connection_bytes_per_s: float = 0.08 * GB
    link_bytes_per_s: float = 1.25 * GB
    slow: float = 0.001
    slow_times: float = 10.0
    refused: float = 0.0005
    retry_s: float = 0.2
    puts_per_s: float = 3500.0
    gets_per_s: float = 5500.0
    streams: int = 16

    def request_s(self, chance: random.Random, size_bytes: float = 0.0) -> float:
        """How long one request takes that is not refused."""
        latency_s = self.latency_s * math.exp(self.sigma * chance.gauss(0.0, 1.0))
        duration_s = latency_s + size_bytes / self.connection_bytes_per_s
        return duration_s * (self.slow_times if chance.random() < self.slow else 1.0)


@dataclass(frozen=True)
class Network:
    """Between the workers. `message_s`: what worker 0's process takes for one text that it takes in or gives out."""

    latency_s: float = 0.0005
    link_bytes_per_s: float = 1.25 * GB
    message_s: float = 0.0002


@dataclass(frozen=True)
class Prices:
    """Dollars, of a bucket in the region where the job runs; bytes between them cost nothing then."""

    name: str
    per_write: float  # PUT, LIST
    per_read: float  # GET
    per_gb_month: float


PRICES_OF = "list prices of S3 Standard (us-east-1) and GCS Standard (us-central1), as published in 2025"
PRICES = (Prices("S3", 0.005 / 1000, 0.0004 / 1000, 0.023), Prices("GCS", 0.005 / 1000, 0.0004 / 1000, 0.020))


@dataclass(frozen=True)
class Sent:
    """When each worker's shards were all there, and how many requests that took."""

    ended_s: list[float]
    requests: int
    refused: int


def send(storage: Storage, chance: random.Random, sizes: Sequence[Sequence[int]]) -> Sent:
    """Each worker sends its own objects, `storage.streams` at once; all begin at 0."""
    free = [(0.0, worker, -1, 0) for worker, own in enumerate(sizes) for _ in range(min(storage.streams, len(own)))]
    heapq.heapify(free)
    begun = [0] * len(sizes)
    link_s, ended_s = [0.0] * len(sizes), [0.0] * len(sizes)
    allowed_s, requests, refused = 0.0, 0, 0
    while free:
        now_s, worker, number, tries = heapq.heappop(free)
        if number < 0:  # the stream is free for the next
            number = begun[worker]
            begun[worker] += 1
        if number >= len(sizes[worker]):
            continue
        requests += 1
        # The server takes a second's worth at once: what comes on top of that is told to slow down.
        if allowed_s - now_s > 1.0 or chance.random() < storage.refused:
            refused += 1
            wait_s = storage.retry_s * 2.0 ** min(tries, 6) * (0.5 + chance.random())
            heapq.heappush(free, (now_s + wait_s, worker, number, tries + 1))
            continue
        allowed_s = max(allowed_s, now_s) + 1.0 / storage.puts_per_s
        size_bytes = sizes[worker][number]
        link_s[worker] = max(link_s[worker], now_s) + size_bytes / storage.link_bytes_per_s
        end_s = max(now_s + storage.request_s(chance, size_bytes), link_s[worker])
        ended_s[worker] = max(ended_s[worker], end_s)
        heapq.heappush(free, (end_s, worker, -1, 0))
    return Sent(ended_s, requests, refused)


def read_s(storage: Storage, size_bytes: float, readers: int, piece_bytes: int) -> float:
    """How long each of so many workers takes that all read so much: at the server's rate, at its link's, or in turns of
    as many pieces as it has streams."""
    pieces = max(1.0, size_bytes / piece_bytes)
    request_s = storage.latency_s + min(size_bytes, piece_bytes) / storage.connection_bytes_per_s
    return max(
        math.ceil(pieces / storage.streams) * request_s,
        size_bytes / storage.link_bytes_per_s,
        readers * pieces / storage.gets_per_s,
    )


def exchange_s(network: Network, size_bytes: float, workers: int) -> float:
    """How long workers take that have 1/N each and give it to all others: each link takes in what it lacks, and each
    gives out as much."""
    return size_bytes * (workers - 1) / workers / network.link_bytes_per_s
