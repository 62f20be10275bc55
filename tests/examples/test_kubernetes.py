"""examples/kubernetes.yaml: valid by Kubernetes' schemas, and its command run as a Job's controller runs it."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import ckptflow
from examples import multi_worker
from tests.examples.commands import started, two_ports
from tests.examples.lives import EXAMPLES, TIMEOUT_S, WITHOUT_END
from tests.processes import Worker
from tests.waiting import until

DOCUMENTS = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
[SERVICE] = [document for document in DOCUMENTS if document["kind"] == "Service"]
[JOB] = [document for document in DOCUMENTS if document["kind"] == "Job"]
POD = JOB["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_it_is_valid(version: str) -> None:
    for document in DOCUMENTS:
        kubernetes_validate.validate(document, version, strict=True)


def test_its_parts_fit_together() -> None:
    """What no schema can see: names that have to be equal, numbers that have to be equal."""
    name, environment = JOB["metadata"]["name"], _environment()
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"job-name": name}
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert environment["WORKER_HOST"] == f"{name}-{{index}}.{POD['subdomain']}"
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert int(environment["WORKER_COUNT"]) == JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
    assert POD["restartPolicy"] == "Never"
    assert int(environment["WORKER_PORT"]) == SERVICE["spec"]["ports"][0]["port"]
    accounts = [document["metadata"]["name"] for document in DOCUMENTS if document["kind"] == "ServiceAccount"]
    assert accounts == [POD["serviceAccountName"]]
    codes = (multi_worker.IS_FENCED, multi_worker.PEER_IS_GONE, 75, 1, 137)
    assert [_action(code) for code in codes] == ["FailJob", "Ignore", "Ignore", "Count", "Count"]


def test_the_command_makes_a_cluster_and_each_pod_is_started_again_alone(tmp_path: Path) -> None:
    url, port = str(tmp_path / "run"), two_ports()

    def pod(index: int, steps: str) -> Any:
        """What the kubelet does, with the names that a cluster's DNS would know replaced by this machine's."""
        environment = _environment() | {"WORKER_HOST": "localhost", "WORKER_PORT": str(port), "CHECKPOINT_URL": url}
        given = [
            re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], argument)
            for argument in CONTAINER["command"] + CONTAINER["args"]
        ]
        own = {"JOB_COMPLETION_INDEX": str(index)}
        return started([*given, "--save-every", "40", "--steps", steps], environment | own, tmp_path / "logs")

    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(pod(index, WITHOUT_END)) for index in (0, 1)]
        until(lambda: ckptflow.list_checkpoints(url) or not all(_runs(pod) for pod in pods), TIMEOUT_S)
        pods[1].kill()
        with contextlib.suppress(RuntimeError):  # it ends without having said so
            pods[0].wait_for_output("never", TIMEOUT_S)
        assert pods[0].process.returncode == multi_worker.PEER_IS_GONE, pods[0].output()
        killed_at = ckptflow.list_checkpoints(url)[-1].step
        last = killed_at + 50

        pods = [stack.enter_context(pod(index, str(last))) for index in (0, 1)]
        counted = _control(pods, lambda index: stack.enter_context(pod(index, str(last))))
        assert counted == 0
        for number, process in enumerate(pods):
            assert f"worker {number} of 2, goes on after step {killed_at}" in process.output()
    assert ckptflow.list_checkpoints(url)[-1].step == last


def _control(pods: list[Worker], start: Any) -> int:
    """Starts each pod that fails again, for itself, as the Job's controller; how many failures were counted."""
    counted = 0
    deadline = time.monotonic() + TIMEOUT_S
    while any(pod.process.poll() != 0 for pod in pods):
        assert time.monotonic() < deadline, "\n".join(pod.output() for pod in pods)
        for index, pod in enumerate(pods):
            if pod.process.poll():
                assert _action(pod.process.returncode) != "FailJob", pod.output()
                counted += _action(pod.process.returncode) == "Count"
                assert counted <= JOB["spec"]["backoffLimit"], pod.output()
                pods[index] = start(index)
        time.sleep(0.05)
    return counted


def _runs(pod: Worker) -> bool:
    return pod.process.poll() is None


def _environment() -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in CONTAINER["env"]}


def _action(code: int) -> str:
    """What the first rule that fits says of a container that ended with this code."""
    for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {"values": []})["values"]:
            return str(rule["action"])
    return "Count"
