"""Several calls at once: all have ended, in order, and whatever one raises comes out."""

from __future__ import annotations

import pytest

from ckptflow.threads import at_once


class Panic(BaseException):
    """No Exception."""


def test_results_are_in_order() -> None:
    assert at_once(3, lambda item: item * 2, range(20)) == list(range(0, 40, 2))
    assert at_once(3, lambda item: item, []) == []


@pytest.mark.parametrize("error", [ValueError("x"), Panic(), SystemExit(0), KeyboardInterrupt()])
def test_whatever_one_raises_comes_out(error: BaseException) -> None:
    done: list[int] = []

    def call(item: int) -> None:
        if item == 3:
            raise error
        done.append(item)

    with pytest.raises(type(error)) as raised:
        at_once(4, call, range(20))
    assert raised.value is error
    assert len(done) == 19
