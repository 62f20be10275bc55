"""What a process goes on from: the incarnation that it is, or what it has restored without a claim."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from ckptflow.commit.lineage import NO_CLAIMS, Own
from ckptflow.commit.start import Start
from ckptflow.job.incarnation import Incarnation
from ckptflow.job.loading import Loading


class Ground(msgspec.Struct, frozen=True):
    """What a worker holds before a fit: a mixture; and, if it is the chief, a checkpoint that it has committed."""

    is_torn: bool
    has_committed: bool


@dataclass(frozen=True, slots=True)
class Footing:
    """What the next save goes on from: what was only `read`, which it is to take up, or else the `incarnation`.

    `loading`: how `read` was loaded. `taken_up`: the footing on which `incarnation` has taken up what was read. `own`
    are the claims of this process. Replaced as a whole: an interrupt finds what was, or what is.
    """

    incarnation: Incarnation | None = None
    read: Start | None = None
    loading: Loading | None = None
    taken_up: Footing | None = None
    own: Own = NO_CLAIMS

    @property
    def acting(self) -> Incarnation | None:
        """The incarnation that the next save is of; None where one is to begin with it."""
        return self.incarnation if self.read is None else None

    @property
    def start(self) -> Start | None:
        return self.read or (self.incarnation.start if self.incarnation is not None else None)

    @property
    def last_step(self) -> int:
        """The newest step that was restored or saved; -1 before either."""
        if self.acting is not None:
            return self.acting.last_step
        return self.read.restored.folder.step if self.read is not None and self.read.restored is not None else -1

    def but_read(self, start: Start, loading: Loading) -> Footing:
        """The same, once `start` was read: its incarnation saves no more, unless all is restored anew."""
        return replace(self, read=start, loading=loading, taken_up=None)

    def but_tried(self, writer_id: str) -> Footing:
        """After a claim that may be there, and by which nobody acts: nor does the incarnation before, which it fences.
        What was read is still to be taken up."""
        return replace(self, incarnation=None, taken_up=None, own=self.own.but_tried(writer_id))

    def begun(self, incarnation: Incarnation) -> Footing:
        """Once `incarnation` has begun, with what was read if anything was."""
        before = replace(self, incarnation=None) if self.read is not None else None
        return Footing(incarnation, taken_up=before, own=Own(incarnation.start.held))

    @property
    def has_committed(self) -> bool:
        """Whether the incarnation has committed a checkpoint. False on other workers than the chief."""
        return self.incarnation is not None and self.incarnation.has_committed

    def back(self, *, has_committed: bool) -> Footing | None:
        """The footing on which what was read is to be taken up, once more where nothing that goes on from it was
        committed, as the chief knows; None where there is none."""
        if self.read is not None:
            return self
        if self.taken_up is None or self.own.held is None or has_committed:
            return None
        return self.taken_up.but_tried(self.own.held.writer_id)
