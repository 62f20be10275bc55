"""`open_checkpoint` as a mapping: names, and what is no list of names."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptflow
from tests.roots import make_root


@pytest.fixture
def root(tmp_path: Path) -> str:
    make_root(root := str(tmp_path / "run"), (1,))
    return root


def test_a_name_in_place_of_a_list_of_names(root: str) -> None:
    with ckptflow.open_checkpoint(root) as opened:
        with pytest.raises(TypeError, match=r"read\(\['vocabulary'\]\), or checkpoint\['vocabulary'\]"):
            opened.read("vocabulary")
        assert list(opened.read(["vocabulary"])) == ["vocabulary"]
