"""botocore's and aiobotocore's sessions: what finds and renews their credentials has our limits of time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from ckptflow.storage.replies import StrangeReplyError
from ckptflow.storage.stalls import StalledError, connect_timeout_s
from ckptflow.threads import left_alone

_Result = TypeVar("_Result")
# So many limits of one request for all that finds credentials: a request tells more of what stands still. A credential
# process has one of them, and is ended before all is given up: botocore then uses credentials that are still valid.
_REQUESTS = 2


def asynchronous_session(kwargs: dict[str, Any], http_session: Any, stall_timeout_s: float | None) -> Any:
    """What s3fs would make, with our limits for whatever gives it credentials."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    session = AioSession(**kwargs)
    session.set_default_client_config(AioConfig(**_limits(stall_timeout_s), http_session_cls=http_session))
    share_aws_data(session)
    _check_credentials(session)
    _keep_metadata_here(session)
    if stall_timeout_s is not None:
        limit_s = _REQUESTS * stall_timeout_s
        _run_helpers_by(session, functools.partial(_start_ending, stall_timeout_s))
        find = session.get_credentials

        async def find_in_time() -> Any:
            found = await _in_time(find, limit_s)
            if found is not None and "get_frozen_credentials" not in vars(found):  # which renews them
                found.get_frozen_credentials = functools.partial(_in_time, found.get_frozen_credentials, limit_s)
            return found

        session.get_credentials = find_in_time
    return session


def blocking_session(profile: str | None, stall_timeout_s: float | None) -> Any:
    """The same of botocore's."""
    import botocore.session
    from botocore.config import Config

    session: Any = botocore.session.Session(profile=profile)
    session.set_default_client_config(Config(**_limits(stall_timeout_s)))
    share_aws_data(session)
    _check_credentials(session)
    if stall_timeout_s is not None:
        limit_s = _REQUESTS * stall_timeout_s
        _run_helpers_by(session, functools.partial(_Ending, stall_timeout_s))
        find = session.get_credentials

        def find_in_time() -> Any:
            found = _left_in_time(find, limit_s)
            if found is not None and "get_frozen_credentials" not in vars(found):
                found.get_frozen_credentials = functools.partial(_left_in_time, found.get_frozen_credentials, limit_s)
            return found

        session.get_credentials = find_in_time
    return session


def _check_credentials(session: Any) -> None:
    for event in ("before-parse.sts", "before-parse.s3.CreateSession"):
        session.register(event, _check_whole)


def _check_whole(response_dict: dict[str, Any], **_: Any) -> None:
    """Raises for credentials that are cut off: botocore's own error has all of what came, and botocore logs it, too."""
    if response_dict["status_code"] >= 300:
        return
    try:
        ET.fromstring(response_dict["body"])  # as botocore is about to
    except ET.ParseError:
        what = f"credentials are no XML, or only a part of it: {len(response_dict['body']):,} bytes"
        raise StrangeReplyError(what) from None


def without_redirects(session: Any) -> Any:
    """What aiobotocore uses of a session of aiohttp's, which follows a redirect to any host, with all but a login."""
    return SimpleNamespace(request=functools.partial(session.request, allow_redirects=False))


def _keep_metadata_here(session: Any) -> None:
    """What asks a machine or a container for its credentials has connections of its own, and follows no redirect."""
    from botocore.exceptions import BotoCoreError

    def stay(connections: Any) -> None:
        get = connections._get_session

        async def get_staying(proxy_url: str | None) -> Any:
            return without_redirects(await get(proxy_url))

        connections._get_session = get_staying

    with contextlib.suppress(BotoCoreError):  # as below
        for provider in session.get_component("credential_provider").providers:
            if provider.METHOD == "container-role":
                stay(provider._fetcher._session)
            elif provider.METHOD == "iam-role":
                stay(provider._role_fetcher._session)


def share_aws_data(session: Any) -> None:
    """botocore's description of S3, megabytes of JSON, is parsed once in a process, not once for each session."""
    from botocore.exceptions import BotoCoreError

    with contextlib.suppress(BotoCoreError):  # of the user's configuration: it is raised by the first request
        session.register_component("data_loader", _aws_data(session.get_config_variable("data_path")))


@functools.cache
def _aws_data(search_path: str | None) -> Any:
    from botocore.loaders import create_loader

    return create_loader(search_path)


def _limits(stall_timeout_s: float | None) -> dict[str, Any]:
    """Of the services that give temporary credentials: one try each, retries are ours."""
    connect_s = connect_timeout_s(stall_timeout_s)
    return {"connect_timeout": connect_s, "read_timeout": stall_timeout_s, "retries": {"total_max_attempts": 1}}


def _stalled(limit_s: float) -> StalledError:
    return StalledError(
        f"no AWS credentials after {limit_s:g} s: the credential process, or the service that gives them, did not "
        "answer"
    )


async def _in_time(find: Callable[[], Awaitable[_Result]], limit_s: float) -> _Result:
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            return await find()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise _stalled(limit_s) from error


def _left_in_time(find: Callable[[], _Result], limit_s: float) -> _Result:
    finding = left_alone("ckptflow-credentials", find)
    try:
        return finding.result(limit_s)
    except TimeoutError as error:
        if finding.done():
            raise
        raise _stalled(limit_s) from error


def _run_helpers_by(session: Any, start: Callable[..., Any]) -> None:
    """The session's credential processes are started by `start`, which ends one that does not end by itself."""
    from botocore.exceptions import BotoCoreError

    def prepared(providers: list[Any]) -> list[Any]:
        for provider in providers:
            if provider.METHOD == "custom-process":
                provider._popen = start
            elif provider.METHOD == "assume-role":  # of a role whose source is another profile, perhaps with a process
                builder = provider._profile_provider_builder
                builder.providers = _then(builder.providers, prepared)
        return providers

    with contextlib.suppress(BotoCoreError):  # as above
        prepared(session.get_component("credential_provider").providers)


def _then(first: Callable[..., _Result], second: Callable[[_Result], _Result]) -> Callable[..., _Result]:
    return lambda *args, **words: second(first(*args, **words))


class _Ending(subprocess.Popen[bytes]):
    """A process that is waited for as long as that, and then killed."""

    def __init__(self, limit_s: float, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self._limit_s = limit_s

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002
        try:
            return super().communicate(input, self._limit_s)
        except subprocess.TimeoutExpired as error:
            with self:  # which closes its pipes
                self.kill()
            raise _stalled(self._limit_s) from error


async def _start_ending(limit_s: float, *args: Any, **words: Any) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(*args, **words)
    communicate = process.communicate

    async def communicate_in_time() -> tuple[bytes, bytes]:
        try:
            return await _in_time(communicate, limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                process.kill()

    process.communicate = communicate_in_time  # type: ignore[assignment,method-assign]
    return process
