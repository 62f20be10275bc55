"""Every reply of a storage, wrong in every way: no wrong value, nothing acknowledged lost, each failure loud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.chaos.conftest import Note
from tests.chaos.replies import Lab
from tests.servers import Server
from tests.storage.proxy import FAULTS, faulty_proxy

CLIENTS = ["s3fs", "obstore", "gcsfs"]
SHORT_EVERY = 67  # one in so many of a short run


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    server: Server = request.getfixturevalue("fake_gcs" if request.param == "gcsfs" else "seaweedfs")
    with faulty_proxy(server) as proxy:
        lab = Lab(server, proxy, "obstore" if request.param == "obstore" else "fsspec")
        lab.prepare()
        yield lab


def campaign(lab: Lab, every: int) -> tuple[int, str]:
    """Every so many-th of the pairs of a request and a fault: how many were tried, and what came of it."""
    requests = lab.count_requests()
    pairs = [(number, fault) for number in range(requests) for fault in FAULTS]
    found: Counter[str] = Counter()
    violations = []
    for number, fault in pairs[::every]:
        try:
            outcome = lab.trial(fault, number)
        except AssertionError as error:
            violations.append(f"{fault.__name__} on request {number}, {lab.spoilt}: {error}")
            print(violations[-1], flush=True)
            continue
        found["went well" if outcome.is_acknowledged else type(outcome.errors[0]).__name__] += 1
    tried = len(pairs[::every])
    print(f"{tried} of {len(pairs)} trials, {requests} requests, {len(FAULTS)} faults: {dict(found)}")
    assert violations == []
    good = found["went well"]
    return tried, f"{requests} requests, {len(FAULTS)} faults; {good} saves acknowledged, 0 broken promises"


@pytest.mark.parametrize("lab", ["obstore"], indirect=True)
def test_a_few_wrong_replies(lab: Lab) -> None:
    campaign(lab, SHORT_EVERY)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("lab", CLIENTS, indirect=True)
def test_every_reply_in_every_way(lab: Lab, request: pytest.FixtureRequest, note: Note) -> None:
    tried, result = campaign(lab, 1)
    note(f"wrong replies, {request.node.callspec.params['lab']}", tried, result)
