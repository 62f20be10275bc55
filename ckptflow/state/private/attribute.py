"""An attribute of somebody else's object under a name of ours."""

from __future__ import annotations

from typing import Any


class PrivateView:
    """Somebody else's object, of which `Attribute`s are read and set."""

    def __init__(self, of: Any) -> None:
        self.of = of


class Attribute:
    """In a `PrivateView`: what its object has under a private name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, view: PrivateView | None, owner: type | None = None) -> Any:
        return self if view is None else getattr(view.of, self.name)

    def __set__(self, view: PrivateView, value: Any) -> None:
        setattr(view.of, self.name, value)
