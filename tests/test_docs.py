"""Documentation is executed: each block in README.md, CONTRIBUTING.md and docs/*.md runs, or says why it does not.

A fence is ```python run, ```sh run, ```python save-as: train.py (a later block must run that file), or
```python no-test: reason. The blocks of one page run in order, in one process, in an empty folder. Fences of other
languages (text, json) are not looked at.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptflow import errors
from tests.processes import run_python, zygote

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXECUTABLE = {"python", "py", "sh", "bash", "shell", "console"}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, what follows it on the fence, and the line that it starts at."""

    language: str
    mark: str
    text: str
    line: int


def blocks_of(text: str) -> list[Block]:
    blocks = []
    for match in _FENCE.finditer(text):
        language, _, mark = match[1].strip().partition(" ")
        blocks.append(Block(language, mark.strip(), match[2], text.count("\n", 0, match.start()) + 1))
    return blocks


def saved_as(block: Block) -> str | None:
    """The name of the file that a block is saved as, for a later block to run."""
    match = re.fullmatch(r"save-as: ([\w-]+\.\w+)", block.mark)
    return match[1] if match else None


def unmarked(text: str) -> list[str]:
    """The executable blocks that neither run nor say why not."""
    blocks = blocks_of(text)

    def is_run(number: int, block: Block) -> bool:
        name = saved_as(block)
        if name is None:
            return block.mark == "run"
        return any(name in later.text for later in blocks[number + 1 :] if later.mark == "run")

    return [
        f"line {block.line}: ```{block.language} {block.mark}"
        for number, block in enumerate(blocks)
        if block.language in _EXECUTABLE
        and not is_run(number, block)
        and not re.fullmatch(r"no-test: \S.*", block.mark)
    ]


def script_of(page: str, text: str) -> str:
    """One Python program that runs the marked blocks in order, each under its page's name and line."""
    lines = ["import subprocess", "names = {'__name__': '__main__'}"]
    for block in blocks_of(text):
        name = saved_as(block)
        if name is not None:
            lines.append(f"open({name!r}, 'w').write({block.text!r})")
        elif block.mark != "run":
            continue
        elif block.language == "python":
            code = "\n" * block.line + block.text
            lines.append(f"exec(compile({code!r}, {page!r}, 'exec'), names)")
        else:
            lines.append(f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {block.text!r}], check=True)")
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs_or_says_why_not(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert unmarked(text) == []
    if not any(block.mark == "run" for block in blocks_of(text)):
        return
    env = {"PATH": f"{zygote().stand_ins}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = run_python("-c", script_of(page.name, text), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


def test_a_silent_block_is_found() -> None:
    assert unmarked("```python\nx = 1\n```\n") == ["line 1: ```python "]
    assert unmarked("```sh no-test:\nls\n```\n") == ["line 1: ```sh no-test:"]
    saved = "```python save-as: train.py\nx = 1\n```\n"
    assert unmarked(saved) == ["line 1: ```python save-as: train.py"]
    assert unmarked(saved + "```sh run\npython train.py\n```\n") == []
    assert unmarked("```python no-test: needs a cluster\nx\n```\n```json\n{}\n```\n") == []


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_error_has_a_section_by_its_name() -> None:
    """A message is searched for by the error's name, and what is found says what to do."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    found = [error for error in vars(errors).values() if inspect.isclass(error) and error.__module__ == errors.__name__]
    assert list(sections) == [error.__name__ for error in found]
    assert all(len(words.split()) > 10 for words in sections.values())
