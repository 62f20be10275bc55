"""docs/security.md says which permissions are enough on S3: a server that asks for permissions is given just these."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import tensorflow as tf

import ckptflow
from tests import servers
from tests.waiting import HANG_S

PAGE = Path(__file__).resolve().parent.parent / "docs" / "security.md"
_ANY = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": servers.S3_REGION}

Options = Callable[[str], dict[str, Any]]


def policies() -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's and the reader's, as they stand on the page."""
    job, reader = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL))
    return job, reader


def as_moto_reads_it(policy: dict[str, Any]) -> dict[str, Any]:
    """moto asks for `s3:DeleteObject` on the bucket where many are deleted at once; Amazon asks on each object."""
    on_bucket = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::bucket"}
    may_delete = any("s3:DeleteObject" in statement["Action"] for statement in policy["Statement"])
    return {**policy, "Statement": [*policy["Statement"], *([on_bucket] if may_delete else [])]}


@pytest.fixture(scope="module")
def options() -> Iterator[Options]:
    """Who may do what: `options("job")` and `options("reader")` are storage options with a user's own key."""
    patch = pytest.MonkeyPatch()
    patch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1000")
    with servers.moto() as server:
        patch.undo()
        server.make_bucket("bucket")
        iam = boto3.client("iam", endpoint_url=server.endpoint, **_ANY)
        keys = {}
        for name, policy in zip(("job", "reader"), policies(), strict=True):
            iam.create_user(UserName=name)
            document = json.dumps(as_moto_reads_it(policy))
            iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=document)
            keys[name] = iam.create_access_key(UserName=name)["AccessKey"]
        start_asking = urllib.request.Request(
            server.endpoint + "/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(start_asking, timeout=HANG_S).close()

        def options_of(name: str) -> dict[str, Any]:
            key = keys[name]
            return {**server.storage_options, "key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}

        yield options_of


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_the_policies_are_enough_and_no_more(client: str, options: Options) -> None:
    job, reader = ({**options(name), "client": client} for name in ("job", "reader"))
    url, state = f"s3://bucket/runs/{client}", {"weights": tf.Variable(tf.range(10.0))}
    with ckptflow.CheckpointManager(url, state, keep=ckptflow.KeepLast(1), storage_options=job) as manager:
        for step in range(1, 4):
            manager.save(step)
        manager.wait()
        manager.pin(3)
        manager.unpin(3)
    with ckptflow.CheckpointManager(url, state, storage_options=job) as manager:
        assert manager.restore_latest() is not None

    assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(url, storage_options=reader)] == [3]
    with ckptflow.open_checkpoint(url, storage_options=reader) as checkpoint:
        assert checkpoint.verify() == []
    with ckptflow.CheckpointManager(url, state, read_only=True, storage_options=reader) as manager:
        assert manager.restore_latest() is not None

    with ckptflow.CheckpointManager(url, state, storage_options=reader) as manager:
        with pytest.raises(ckptflow.StorageAccessError):
            manager.restore_latest()  # it would claim
    with ckptflow.CheckpointManager("s3://bucket/elsewhere", state, storage_options=job) as manager:
        with pytest.raises(ckptflow.StorageAccessError):
            manager.save(1)
