"""What stands in for a file is not named, in a message of one line or of several."""

from __future__ import annotations

import pytest

from ckptflow.errors import StateMismatchError
from ckptflow.places.shown_as import shown_as
from ckptflow.printable import lines


def test_an_error_of_several_lines_keeps_them() -> None:
    with pytest.raises(StateMismatchError) as error, shown_as("/tmp/x/m.keras", "s3://bucket/a\nb"):
        raise StateMismatchError(lines("/tmp/x/m.keras lacks:", "one", "two"))
    assert str(error.value) == "s3://bucket/a\\nb lacks:\none\ntwo"


def test_an_error_of_one_line_stays_one() -> None:
    with pytest.raises(StateMismatchError) as error, shown_as("/tmp/x/m.keras", "a"):
        raise StateMismatchError("/tmp/x/m.keras\nlacks all")
    assert str(error.value) == "a\\nlacks all"
