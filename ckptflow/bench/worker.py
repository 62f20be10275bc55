"""One of several processes that save and restore together: a line of JSON in, one out (`crew.py` has their shapes).

    python -m ckptflow.bench.worker

Ends when its input does.
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

import msgspec

from ckptflow.bench.crew import Hello, Order, WorkerReply
from ckptflow.bench.rounds import BenchRounds
from ckptflow.decoding import decode_json
from ckptflow.storage.opening import open_store
from ckptflow.storage.redaction import redact


def main() -> None:
    """Until the input ends. An error is an answer: whoever asks decides what it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    line = sys.stdin.buffer.readline()
    if not line:
        return
    hello = decode_json(line, Hello)
    try:
        store = open_store(hello.url, hello.storage_options)
        rounds = BenchRounds(store, hello.size_bytes, hello.worker)
    except Exception as error:
        _send(answers, _failed(error))
        return
    _send(answers, WorkerReply(client=rounds.client))
    for line in sys.stdin.buffer:
        order = decode_json(line, Order)
        try:
            taken = rounds.do(order.phase, order.setting)
        except Exception as error:
            _send(answers, _failed(error))
        else:
            _send(answers, WorkerReply(taken=taken))
    store.close()


def _failed(error: Exception) -> WorkerReply:
    return WorkerReply(error=type(error).__name__, text=redact(str(error)))


def _send(answers: BinaryIO, answer: WorkerReply) -> None:
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
