"""What Google Compute Engine says about the machine's own end."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from http.client import HTTPConnection, HTTPException

logger = logging.getLogger("ckptflow")

_DEFAULT_HOST = "metadata.google.internal"
_TIMEOUT_S = 1.0
_FLAVOR = "Metadata-Flavor", "Google"  # sent, and sent back: an answer without it is not the metadata server's
_silent_hosts: set[str] = set()


def gce_notice() -> bool:
    """Whether Google Compute Engine is about to stop this machine: preempted, or to be ended for maintenance.

    Give it to `PreemptionWatcher(manager, notice=gce_notice)`. Asks the machine's metadata server, at the address in
    GCE_METADATA_HOST if that is set. Raises nothing: if nobody answers there is no notice, and the log says so once.
    A live migration is not a reason to leave.
    """
    return _ask("preempted") == "TRUE" or _ask("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE"


def _ask(name: str) -> str:
    host = os.environ.get("GCE_METADATA_HOST") or _DEFAULT_HOST
    try:
        # no proxy, no redirect: the answer is this machine's own
        with closing(HTTPConnection(host, timeout=_TIMEOUT_S)) as connection:
            connection.request("GET", f"/computeMetadata/v1/instance/{name}", headers=dict([_FLAVOR]))
            response = connection.getresponse()
            answer = response.read(256).decode("ascii", "replace").strip()
    except (OSError, HTTPException) as error:
        _say_once(host, f"{type(error).__name__}: {error}")
        return ""
    if response.status == 200 and response.headers.get(_FLAVOR[0]) == _FLAVOR[1]:
        return answer
    _say_once(host, f"status {response.status}, or not from a metadata server")
    return ""


def _say_once(host: str, why: str) -> None:
    if host not in _silent_hosts:
        _silent_hosts.add(host)
        logger.warning("Google Compute Engine's metadata server %s gives no notice: %s; still asking", host, why)
