"""examples/kubernetes.yaml: valid by Kubernetes' schemas, and its command run as a Job's controller runs it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest
import yaml

import ckptflow
from tests.examples.commands import started, two_ports
from tests.examples.lives import EXAMPLES, IS_FENCED, PEER_IS_GONE, WITHOUT_END
from tests.processes import Worker
from tests.waiting import HANG_S, until

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
    codes = (IS_FENCED, PEER_IS_GONE, 75, 1, 137)
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
        own = {"JOB_COMPLETION_INDEX": str(index), "TF_CPP_MIN_LOG_LEVEL": "3"}  # that of the process it is forked from
        return started([*given, "--save-every", "40", "--steps", steps], environment | own, tmp_path / "logs")

    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(pod(index, WITHOUT_END)) for index in (0, 1)]
        until(lambda: ckptflow.list_checkpoints(url) or not all(_runs(pod) for pod in pods), HANG_S)
        survivor = pods[0]
        (pid,) = re.findall(r"process (\d+), worker", pods[1].output())
        pods[1].kill()
        until(lambda: not psutil.pid_exists(int(pid)), HANG_S)  # a moment after the one that stands for it
        last = ckptflow.list_checkpoints(url)[-1].step + 100
        pods[1] = stack.enter_context(pod(1, str(last)))  # at once, while the other has not noticed yet
        codes = _control(pods, lambda index: stack.enter_context(pod(index, str(last))))
        assert survivor.process.returncode == PEER_IS_GONE, survivor.output()
        assert "Count" not in [_action(code) for code in codes]

        checkpoints = ckptflow.list_checkpoints(url)
        killed_at = max(checkpoint.step for checkpoint in checkpoints if checkpoint.incarnation == 1)
        for number, process in enumerate(pods):
            assert f"worker {number} of 2, goes on after step {killed_at}\n" in process.output()
    assert checkpoints[-1].step == last


def _control(pods: list[Worker], start: Callable[[int], Worker]) -> list[int]:
    """Starts each pod that fails again, for itself, as the Job's controller; the exit codes of those that failed."""
    failed: list[int] = []
    deadline = time.monotonic() + HANG_S
    while any(pod.process.poll() != 0 for pod in pods):
        said = "\n".join(pod.output() for pod in pods)
        assert time.monotonic() < deadline, said
        for index, pod in enumerate(pods):
            if code := pod.process.poll():
                failed.append(code)
                assert _action(code) != "FailJob", said
                assert len(failed) <= JOB["spec"]["backoffLimit"], said
                pods[index] = start(index)
        time.sleep(0.05)
    return failed


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
