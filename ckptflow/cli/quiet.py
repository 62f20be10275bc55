"""A TensorFlow that loads without its start-up notes, which would bury what a verb says."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Written by its libraries while they are loaded, when neither TF_CPP_MIN_LOG_LEVEL nor anything else has a say yet.
_NOTE = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog\(\)")


def load_quietly() -> None:
    """From here on `import tensorflow`, whoever does it, shows none of these notes, and all else that it writes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def without_notes() -> Iterator[None]:
    """What libraries write to standard error in the block comes after it, without the notes."""
    with tempfile.TemporaryFile() as written:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            written.seek(0)
            os.write(2, b"".join(line for line in written if not _NOTE.match(line)))


class _Finder(MetaPathFinder):
    """Finds TensorFlow where it is, once, and has it loaded by `_Quiet`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Quiet(spec.loader)
        return spec


class _Quiet(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = module.__loader__ = self._loader  # what asks for its files asks its own
        with without_notes():
            self._loader.exec_module(module)
