"""Leaving when told to: one worker is told, all save one last step together and end with a code that means "again".

Where a notice comes from, and when it is looked for; the save itself is the manager's.
"""

from __future__ import annotations

from ckptflow.preemption.gce import gce_notice
from ckptflow.preemption.watcher import PreemptionWatcher

__all__ = ["PreemptionWatcher", "gce_notice"]
