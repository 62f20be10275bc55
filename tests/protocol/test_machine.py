"""Save, crash, resume, roll back, prune, pin, damage and start over in any order, against a model that is a dictionary.

One process, the real commit code over a dictionary. The model knows which checkpoints should be there, which of them
count, and what each holds; it has its own retention oracle. Nothing goes back in time, pins survive, and what is kept
is what the policies say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckptflow.commit.catalog import Summaries, find_counting, list_root
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepBest, KeepEvery, KeepLast, Policy
from ckptflow.errors import UsageError
from ckptflow.format.layout import Folder, pin_key, shard_name
from ckptflow.testing import MemoryStore
from tests.commit.roots import Job, damage, folders, shard_key


@dataclass
class Saved:
    """What the model knows of one checkpoint."""

    folder: Folder
    value: tuple[str, ...]
    loss: float | None
    line: tuple[Folder, ...]  # what counted with it in place, itself last
    is_damaged: bool = False


@dataclass
class Model:
    """The root as it should be. `line` is what counts, oldest first; `before_fresh` is deleted only by hand."""

    there: dict[Folder, Saved] = field(default_factory=dict)
    line: list[Folder] = field(default_factory=list)
    pins: set[Folder] = field(default_factory=set)
    before_fresh: set[Folder] = field(default_factory=set)
    claims: int = 0

    def kept(self, last: int, best: int, every: int | None) -> set[Folder]:
        """The retention oracle: of equal steps the newest; then the policies; the newest and the pinned always."""
        whole = {f.step: f for f in self.line}
        steps = sorted(whole)
        keep = set(steps[-last:] if last else [])
        losses = [(loss, step) for step in steps if (loss := self.there[whole[step]].loss) is not None]
        keep |= {step for _, step in sorted(losses)[:best]} if losses or not best else set(steps)
        periods = {step // every for step in steps if step >= every or step == 0} if every else set()
        keep |= {min(step for step in steps if step // every == period) for period in periods} if every else set()
        return {whole[step] for step in keep} | {self.line[-1]} | (self.pins & set(self.line))

    def prune(self, last: int, best: int, every: int | None) -> None:
        kept = self.kept(last, best, every)
        newest = self.line[-1]
        for folder in list(self.there):
            is_outside = folder not in self.line
            reached = folder.step <= newest.step and folder not in self.before_fresh and folder not in self.pins
            if (is_outside and reached) or (not is_outside and folder not in kept):
                del self.there[folder]
        self.line = [folder for folder in self.line if folder in self.there]


LAST, BEST, EVERY = 2, 1, 7
POLICIES: Sequence[Policy] = (KeepLast(LAST), KeepBest("loss", BEST), KeepEvery(steps=EVERY))


class Lives(RuleBasedStateMachine):
    """A job that lives, dies and lives again."""

    @initialize()
    def begin(self) -> None:
        self.store = MemoryStore()
        self.model = Model()
        self.job: Job | None = None
        self.step = 0
        self.start_job()

    def start_job(self, step: int | None = None) -> int | None:
        self.job = Job(self.store, POLICIES)
        restored = self.job.resume(step)
        self.model.claims += 1
        return restored

    def committed(self, folder: Folder, loss: float | None) -> None:
        assert self.job is not None
        self.model.line.append(folder)
        self.model.there[folder] = Saved(folder, self.job.value, loss, tuple(self.model.line))

    # A life

    @precondition(lambda self: self.job is not None)
    @rule(by=st.sampled_from([0, 1, 1, 1, 2, 5]), loss=st.sampled_from([None, 0.1, 0.2, 0.3]))
    def save(self, by: int, loss: float | None) -> None:
        assert self.job is not None
        self.step += by
        summary = self.job.save(self.step, metrics={} if loss is None else {"loss": loss})
        self.committed(summary.folder, loss)
        self.model.prune(LAST, BEST, EVERY)

    @precondition(lambda self: self.job is not None)
    @rule()
    def crash(self) -> None:
        self.job = None

    @precondition(lambda self: self.job is not None)
    @rule()
    def crash_in_a_save(self) -> None:
        """Shards are there, the manifest is not; the next life's first prune takes them."""
        assert self.job is not None
        assert self.job.start.held is not None
        held = self.job.start.held
        folder = Folder(self.step + 1, held.number)
        self.store.objects[folder.key(shard_name(0, 1, 0, held.tag))] = b"partial"
        self.job = None

    @rule()
    def resume(self) -> None:
        """The newest of what counts that is not damaged, saved again where it is not the newest."""
        sound = [folder for folder in self.model.line if not self.model.there[folder].is_damaged]
        if self.model.line and not sound:
            return
        newest = self.model.line[-1] if self.model.line else None
        restored = self.start_job()
        assert restored == (sound[-1].step if sound else None)
        if not sound:
            self.step = 0
            return
        self.step = sound[-1].step
        self.goes_on_from(sound[-1])
        if sound[-1] != newest:
            self.saved_again(sound[-1])

    @precondition(lambda self: any(not saved.is_damaged for saved in self.model.there.values()))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """To any step there is. Of equal steps what counts is taken, then the newest incarnation's."""
        steps = sorted({folder.step for folder in self.model.there})
        step = data.draw(st.sampled_from(steps))
        same = [folder for folder in self.model.line if folder.step == step]
        others = [f for f in self.model.there if f.step == step and f not in self.model.line]
        folder = max(same) if same else max(others, key=lambda f: (f.incarnation, f.call))
        if self.model.there[folder].is_damaged:
            return
        newest = self.model.line[-1] if self.model.line else None
        self.start_job(step)
        self.step = step
        self.goes_on_from(folder)
        if folder != newest:
            self.saved_again(folder)

    def goes_on_from(self, folder: Folder) -> None:
        """The value is that one's, bit for bit, and what counts is what it builds on."""
        assert self.job is not None
        assert self.job.value == self.model.there[folder].value
        if folder in self.model.line:
            self.model.line = [f for f in self.model.line if f <= folder]
        elif folder in self.model.before_fresh:
            self.model.line = []
        else:
            self.model.line = [f for f in self.model.there[folder].line if f in self.model.there]

    def saved_again(self, folder: Folder) -> None:
        assert self.job is not None
        assert self.job.start.held is not None
        self.committed(Folder(folder.step, self.job.start.held.number), self.model.there[folder].loss)

    @precondition(lambda self: bool(self.model.line))
    @rule()
    def start_over(self) -> None:
        """`fresh=True`, and its first save: what was there no longer counts, and stays."""
        self.job = Job(self.store, POLICIES)
        self.job.begin_anew(fresh=True)
        self.model.claims += 1
        self.model.before_fresh |= set(self.model.there)
        self.step = 0
        self.model.line = []
        self.committed(self.job.save(0).folder, None)

    # From outside

    @precondition(lambda self: bool(self.model.there))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        folder = data.draw(st.sampled_from(sorted(self.model.there)))
        self.store.objects[pin_key(folder)] = b"pinned\n"
        self.model.pins.add(folder)

    @precondition(lambda self: bool(self.model.pins))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        folder = data.draw(st.sampled_from(sorted(self.model.pins)))
        del self.store.objects[pin_key(folder)]
        self.model.pins.discard(folder)

    @precondition(lambda self: len([f for f in self.model.line if not self.model.there[f].is_damaged]) >= 2)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Bytes of one that counts go wrong, at their size; at least one sound one is left."""
        sound = [f for f in self.model.line if not self.model.there[f].is_damaged]
        folder = data.draw(st.sampled_from(sound))
        damage(self.store, str(folder), "shard")
        self.model.there[folder].is_damaged = True
        self.job = None  # the life that wrote it would not know; a new one finds out

    @precondition(lambda self: bool(self.model.line))
    @rule(last=st.integers(0, 3))
    def prune_by_hand(self, last: int) -> None:
        """Refused while the newest claim has no commit; else what `KeepLast(last)` says."""
        if self.model.claims != max(f.incarnation for f in self.model.line):
            try:
                prune_by_hand(self.store, Summaries(self.store), [KeepLast(last)])
            except UsageError:
                return
            raise AssertionError("it was not refused")
        prune_by_hand(self.store, Summaries(self.store), [KeepLast(last)])
        self.model.prune(last, 0, None)
        self.job = None  # another process did it: this one's memory of what is there is no longer the model's

    # What must hold

    @invariant()
    def what_should_be_there_is_there(self) -> None:
        assert folders(self.store) == sorted(map(str, self.model.there))

    @invariant()
    def pins_survive(self) -> None:
        for folder in self.model.pins:
            assert f"{folder}/manifest.json" in self.store.objects

    @invariant()
    def what_counts_is_what_the_model_says(self) -> None:
        summaries = Summaries(self.store)
        counting = find_counting(list_root(self.store), None, summaries.get)
        assert list(reversed(counting.folders)) == sorted(self.model.line)

    @invariant()
    def shards_are_whole_and_hold_what_was_saved(self) -> None:
        for folder, saved in self.model.there.items():
            if not saved.is_damaged:
                assert self.store.objects[shard_key(self.store, folder)] == "\n".join(saved.value).encode()


Lives.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLives = Lives.TestCase
