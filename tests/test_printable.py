"""Text from storage and from files steers no terminal, begins no line of log, and turns no order of what follows."""

from __future__ import annotations

import copy
import json
import logging
import re
import socket
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptflow import errors
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.lineage import check_fence, claim_next
from ckptflow.events import Retried
from ckptflow.format.offer import misfit_error
from ckptflow.job.hooks import as_line
from ckptflow.printable import LOGGERS, Lines, lines, lines_of, printable, printable_json
from ckptflow.storage import faults
from ckptflow.storage.opening import open_store
from ckptflow.testing import MemoryStore
from tests.cli.conftest import runner
from tests.cli.runner import Runner
from tests.roots import make_root

__all__ = ["runner"]  # a fixture

PACKAGE = Path(errors.__file__).parent
EVIL = ["\n", "\r", "\x1b[31m", "\x9b31m", "\x7f", "\u202e", "\u2066", "\u200b", "\u2028", "\x85", "\x00", "\ud800"]
NAME = "a\x1b]0;x\x07\x9b2J\u202eb\u2066\nERROR forged\x85\u2028c"


def is_clean(text: str) -> bool:
    """Nothing but what can be seen, and new lines."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("evil", EVIL)
def test_printable(evil: str) -> None:
    shown = printable(f"é a{evil}b")
    assert shown.isprintable()
    assert shown.startswith("é a\\")
    assert printable(shown) == shown
    if evil != "\ud800":
        text = json.dumps({"k": evil}, ensure_ascii=False)
        assert printable_json(text).isprintable()
        assert json.loads(printable_json(text)) == {"k": evil}


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize("evil", EVIL)
def test_every_error_of_ours_is_printable(name: str, evil: str) -> None:
    error = getattr(errors, name)(f"s3://b/{evil}k: no")
    assert str(error).isprintable()
    assert str(copy.copy(error)) == str(error)
    several = getattr(errors, name)(lines("head", f"  {evil}", "hint"))
    assert len(str(several).split("\n")) == 3
    assert is_clean(str(several))
    assert str(copy.copy(several)) == str(several)


def test_lines() -> None:
    assert lines("a\nb", lines("c", "d")) == "a\\nb\nc\nd"
    assert lines_of("a\n\x1b") == "a\n\\x1b"
    assert isinstance(lines_of("a"), Lines)
    error = misfit_error("f", [f"{NAME}: missing"], is_changed=False)
    assert "\nERROR" not in str(error)
    assert is_clean(str(error))


def test_every_logger_of_ours_writes_one_line(caplog: pytest.LogCaptureFixture) -> None:
    used = {found for path in PACKAGE.rglob("*.py") for found in re.findall(r"getLogger\((.*?)\)", path.read_text())}
    assert used - {"_name", "name"} == {f'"{name}"' for name in LOGGERS}
    for name in LOGGERS:
        with caplog.at_level(logging.INFO, name):
            logging.getLogger(name).info("%s of %d", NAME, 1)
            logging.getLogger(name).info("%s", NAME + "\x85")
            logging.getLogger(name).info("an argument %s", OSError(NAME))
            logging.getLogger(name).info("fine %s", "x")
    assert len(caplog.messages) == 4 * len(LOGGERS)
    assert all(message.isprintable() for message in caplog.messages)
    assert caplog.records[-1].args == ("x",)  # what groups records by their text finds it


def test_an_event_is_one_line() -> None:
    event = Retried(verb="get", key=NAME, tries=1, wait_s=0.1, error=NAME)
    assert as_line(event).isprintable()


def test_a_host_cannot_forge_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    monkeypatch.setattr(socket, "gethostname", lambda: NAME)
    held = claim_next(store, Summaries(store), "start", 5.0)
    claim_next(store, Summaries(store), "start", 5.0)
    with pytest.raises(errors.FencedError) as raised:
        check_fence(store, held)
    assert "\\x1b" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_servers_answer_is_not_shown_as_it_is() -> None:
    answer = OSError(f"the server says {NAME}")
    mapped = faults.from_client_error(answer, "read", "s3://b/k")
    assert str(mapped).isprintable()
    store = open_store("memory://printable/x")
    with pytest.raises(errors.StorageError) as raised, store.store._mapped("read", "k"):  # type: ignore[attr-defined]
        raise answer
    assert is_clean("".join(traceback.format_exception(raised.value)))


@pytest.fixture
def evil_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(socket, "gethostname", lambda: NAME)
    root = str(tmp_path / f"r{NAME.replace(chr(0), '')}")
    words: dict[str, Any] = {"metrics": {NAME: 1.0}, "metadata": {NAME: NAME}}
    for step in (1, 2):
        make_root(root, (step,), arrays={f"{NAME}/w": np.full(4, step, "float32")}, **words)
    return root


@pytest.mark.parametrize(
    "verb", ["ls", "ls --all", "show", "show --tensors", "verify", "diff --step 1 --other-step 2", "prune --last 1",
             "pin --step 2", "unpin --step 2", "show --step 9", "verify --step 9"]
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_no_verb_shows_what_a_terminal_would_obey(runner: Runner, evil_root: str, verb: str, as_json: bool) -> None:
    name, *rest = verb.split()
    ran = runner(name, evil_root, *rest, *(["--json"] if as_json else []))
    assert ran.out + ran.err
    assert is_clean(ran.out + ran.err)
    assert "\nERROR" not in ran.out + ran.err
    if as_json and ran.code == 0:
        assert json.dumps(NAME)[1:-1] in json.dumps(ran.json)  # for whoever parses it, it is as it was


def test_a_report_shows_it_neither(runner: Runner, evil_root: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert runner("report", evil_root, "--output", str(page)).code == 0
    text = page.read_text()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]", text)
    assert "\\u202e" in text
