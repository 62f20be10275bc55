"""The network between two workers is cut: each says that the other does not answer, and ends; nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptflow import list_checkpoints, open_checkpoint
from tests.chaos.conftest import Note
from tests.processes import environment
from tests.waiting import HANG_S, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

NAMES = ("ckptflow-a", "ckptflow-b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 23456
MOMENTS_S = (0.0, 0.7, 1.9, 3.1)  # after both are ready


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("network namespaces need `ip`, and root")
    with ExitStack() as stack:
        try:
            for name in NAMES:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("link", "add", "ckpt0", "netns", NAMES[0], "type", "veth", "peer", "name", "ckpt1", "netns", NAMES[1])
            for name, device, address in zip(NAMES, ("ckpt0", "ckpt1"), ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        yield NAMES


@pytest.mark.parametrize("after_s", MOMENTS_S)
def test_a_cut_link(after_s: float, namespaces: tuple[str, str], tmp_path: Path, note: Note) -> None:
    cluster = {"worker": [f"{address}:{PORT}" for address in ADDRESSES]}
    root = tmp_path / "run"
    logs = [tmp_path / f"worker-{index}.log" for index in range(2)]
    with ExitStack() as stack:
        workers = []
        for index, (name, log) in enumerate(zip(namespaces, logs, strict=True)):
            task = {"type": "worker", "index": index}
            env = environment({"ROOT": str(root), "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})
            code = "from tests.chaos.standstill import works; works()"
            command = ["ip", "netns", "exec", name, sys.executable, "-c", code]
            out = stack.enter_context(log.open("wb"))
            worker = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        until(lambda: all("ready" in log.read_text() for log in logs), HANG_S)
        time.sleep(after_s)
        ip("-n", namespaces[1], "link", "set", "ckpt1", "down")
        since = time.monotonic()
        codes = [worker.wait(HANG_S) for worker in workers]
        took_s = time.monotonic() - since
    texts = [log.read_text() for log in logs]
    assert codes == [1, 1], texts
    for index, text in enumerate(texts):
        assert f"worker {1 - index} " in text, text
        assert "PeerError" in text or "SaveFailedError" in text, text
    told = [int(step) for text in texts for step in re.findall(r"committed (\d+)\n", text)]
    newest = max((each.step for each in list_checkpoints(root)), default=0)
    assert max(told, default=0) <= newest
    if newest:
        with open_checkpoint(str(root)) as checkpoint:
            assert checkpoint.verify() == []
    note("the link between two workers is cut", 1, f"both ended, the slower one after {took_s:.0f} s; nothing lost")
