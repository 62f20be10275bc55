"""How a save has ended, if not well why, told to the other workers without the storage, which may be what has failed.

No exchange: who looks finds a note or goes on. So it may be left and looked for in any thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import NamedTuple

import msgspec

from ckptflow.decoding import decode_json
from ckptflow.errors import CkptflowError, SaveFailedError
from ckptflow.format.failure import Failure
from ckptflow.format.layout import Folder
from ckptflow.peers import service
from ckptflow.peers.failing import failure_of
from ckptflow.peers.post import UnreachableError
from ckptflow.printable import lines_of

_LEAVE_S = 5.0
_LOOK_S = 0.001  # for a note that is there or not
_KEPT = 100  # notes of the newest saves


class Note(NamedTuple):
    """How a save has ended."""

    failure: CkptflowError | None  # None: it is committed


class Notes:
    """Of the saves of one incarnation, on one worker. A job without a coordination service has none."""

    def __init__(self, tag: str, world_size: int) -> None:
        """`tag` is that of the claim."""
        self._prefix = f"ckptflow/saves/{tag}"
        self._left = deque[str]()
        self._post = service.Service() if world_size > 1 and service.is_there() else None

    @property
    def are_left(self) -> bool:
        """Whether this job's workers leave notes."""
        return self._post is not None

    def leave(self, folder: Folder, error: BaseException | None) -> None:
        """Tells why the save into `folder` has failed; of several reasons the first stays.

        None: it is committed. Those who wait for that look at the storage then.
        """
        if self._post is None:
            return
        failure = failure_of(error) if error is not None else None
        with contextlib.suppress(UnreachableError):
            self._post.put(self._key(folder), msgspec.json.encode(failure).decode(), _LEAVE_S)
        self._left.append(self._key(folder))
        if len(self._left) > _KEPT:
            self._post.forget(self._left.popleft())

    def read(self, folder: Folder) -> Note | None:
        """How the save into `folder` has ended, if a worker has said so."""
        if self._post is None:
            return None
        try:
            text = self._post.get(self._key(folder), _LOOK_S)
        except UnreachableError:
            return None
        if text is None or text == "null":
            return None if text is None else Note(None)
        failure = decode_json(text, Failure)
        return Note(failure.rebuild() or SaveFailedError(lines_of(str(failure))))

    def find(self, folder: Folder) -> CkptflowError | None:
        """Why the save into `folder` has failed, if a worker has said so."""
        note = self.read(folder)
        return note.failure if note is not None else None

    def _key(self, folder: Folder) -> str:
        return f"{self._prefix}/{folder}"
