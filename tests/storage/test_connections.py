"""The clients let as many requests be under way as there may be streams."""

from __future__ import annotations

from ckptflow.storage.clients import open_file_system
from ckptflow.storage.throttling import MOST_AT_ONCE


def test_s3fs_has_a_connection_for_each_stream() -> None:
    """botocore's own limit of 10 would be the number."""
    keys = {"key": "k", "secret": "s"}
    file_system, _ = open_file_system("s3://bucket/run", "s3", keys)
    assert file_system.config_kwargs["max_pool_connections"] > MOST_AT_ONCE
    file_system, _ = open_file_system("s3://bucket/run", "s3", keys | {"config_kwargs": {"max_pool_connections": 7}})
    assert file_system.config_kwargs["max_pool_connections"] == 7


def test_gcsfs_has_a_connection_for_each_stream() -> None:
    """aiohttp's own limit is 100."""
    file_system, _ = open_file_system("gs://bucket/run", "gs", {"token": "anon"})
    assert file_system.session_kwargs["connector"].limit > MOST_AT_ONCE
