"""The seven invariants of the commit protocol, as functions over the storage's content and ghost history.

What counts, and what the ancestry of each checkpoint is, is read here from the bytes by an independent rule; only I2
and I4, which speak of what the next life does, ask the real code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from ckptflow.errors import CorruptCheckpointError
from ckptflow.format import layout
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Claim, Manifest, decode
from tests.protocol.explorer import (
    CUT,
    EMPTIED,
    GHOST,
    KNOWN,
    LATE,
    UNCLAIMED,
    UNREADABLE,
    Content,
    Explorer,
    State,
    ViolationError,
)
from tests.protocol.lives import Ancestry, parse_ancestry, writer_of
from tests.protocol.process import VERSION, Facts, Node, bytes_of

parse_folder = lru_cache(10_000)(layout.parse_folder)
parse_claim_key = lru_cache(10_000)(layout.parse_claim_key)


@lru_cache(100_000)
def read_manifest(data: bytes) -> Manifest | None:
    try:
        return decode(data, Manifest, "manifest")
    except CorruptCheckpointError:
        return None


def manifests_in(content: Content) -> dict[Folder, Manifest | None]:
    """Every folder that holds a manifest, None where that is damaged."""
    found: dict[Folder, Manifest | None] = {}
    for key, data in content.items():
        head, _, name = key.partition("/")
        folder = parse_folder(head)
        if folder is not None and name == "manifest.json":
            found[folder] = read_manifest(data)
    return found


def counting_in(content: Content) -> set[Folder]:
    """What counts: the newest incarnation that has a manifest, and what its lineage names. Rule 3, in three lines."""
    found = manifests_in(content)
    newest = max((folder.incarnation for folder in found), default=0)
    lineage = {name for f, m in found.items() if m and f.incarnation == newest for name in m.lineage}
    return {folder for folder in found if folder.incarnation == newest or str(folder) in lineage}


def top_number(content: Content) -> int:
    claims = (parse_claim_key(key) or 0 for key in content)
    folders = (folder.incarnation for key in content if (folder := parse_folder(key.partition("/")[0])))
    return max([0, *claims, *folders])


def _claims_in(content: Content) -> dict[int, int]:
    """By number, the index of the process that wrote each claim."""
    numbers = {key: number for key in content if (number := parse_claim_key(key)) is not None}
    return {number: writer_of(decode(content[key], Claim, key)) for key, number in numbers.items()}


def ancestry_in(content: Content, folder: Folder) -> Ancestry:
    """The ancestry that a committed checkpoint's shards hold; empty where they are gone."""
    manifest = read_manifest(content.get(folder.manifest_key, b""))
    data = content.get(folder.key(manifest.shards[0].name)) if manifest else None
    try:
        return parse_ancestry(bytes_of(data)) if data else ()
    except UnicodeDecodeError:
        return ()


def check_base_is_kept(before: Content, deleted: Collection[Folder], by: Facts, others: Iterable[Facts]) -> None:
    """I1: what an incarnation resumes from is never deleted by an older one before it has committed something newer."""
    there = manifests_in(before) if deleted else {}
    for folder in deleted:
        for other in others:
            has_committed = any(f.incarnation == other.number for f in there)
            is_held = any(parse_claim_key(key) == other.number for key in before)  # else it is fenced already
            waits = is_held and not has_committed and not other.copies and not other.ends
            if waits and other.base == str(folder) and other.number > by.number:
                raise ViolationError(f"I1: incarnation {by.number} deleted {folder}, from which {other.number} resumed")


def check_promises(promised: Iterable[str], restored: Ancestry) -> None:
    """I2: an acknowledged commit is what the next life restores, or something that builds on it."""
    for name in promised:
        if name not in restored:
            what = restored[-1] if restored else "nothing"
            raise ViolationError(f"I2: {name} was acknowledged, and the next life restores {what}")


def check_claims(processes: Iterable[Facts]) -> None:
    """I3: no two incarnations act on one claim."""
    held = [facts.number for facts in processes if facts.number and facts.ends in ("", "done")]
    if len(held) != len(set(held)):
        raise ViolationError(f"I3: two incarnations act on one claim: {sorted(held)}")


def check_who_is_ended(before: Content, after: Content, node: Node, known: Collection[str]) -> None:
    """I7: who takes up what it has only read ends no job that has claimed since."""
    claims = _claims_in(before)
    writer = claims[max(claims)] if claims else None
    is_known = writer == node.process.index or f"{KNOWN}{node.process.index}: claim of {writer}" in known
    if writer is not None and not is_known and len(_claims_in(after)) > len(claims):
        raise ViolationError(f"I7: P{writer} has claimed since {node.process.name} has read, and is ended by it")


def check_something_is_left(before: Facts, after: Facts) -> None:
    """I2: whatever a prune deletes, what can be restored is still there."""
    if before.ends == "done" and after.ends == "CorruptCheckpointError":
        raise ViolationError("I2: what was deleted was all that could be restored")


def check_lives(facts: Facts, *, damaged: Collection[str]) -> None:
    """I4: a lone live incarnation can always restore and commit, unless somebody has damaged what is there."""
    may_find_damage = any(not name.startswith((GHOST, LATE, KNOWN, CUT)) and name != UNCLAIMED for name in damaged)
    fine = {"done"} | ({"CorruptCheckpointError"} if may_find_damage else set())
    fine |= {"CheckpointNotFoundError"} if facts.goes_back else set()
    fine |= {"CommitUnknownError"} if facts.met_silence else set()
    fine |= {"StorageUnavailableError"} if facts.was_misled else set()
    fine |= {"FencedError"} if UNCLAIMED in damaged else set()
    if facts.ends not in fine:
        raise ViolationError(f"I4: a lone incarnation ends by {facts.ends}")


def check_shards_are_there(content: Content, damaged: Iterable[str]) -> None:
    """I5: nothing that counts lacks its shards (but for what was damaged from outside)."""
    for folder in counting_in(content):
        manifest = read_manifest(content[folder.manifest_key])
        if manifest is None or {str(folder), GHOST + str(folder), EMPTIED} & {*damaged}:
            continue
        for shard in manifest.shards:
            if len(bytes_of(content.get(folder.key(shard.name), b""))) != shard.size_bytes:
                raise ViolationError(f"I5: {folder} counts, and {shard.name} is gone")


def check_two_copies(content: Content) -> None:
    """I6: of two or more steps that count, no one file is in all: what is newest falls back to another copy."""
    files = _files_of_steps(content)
    shared = set.intersection(*files.values()) if len(files) > 1 else set()
    if shared:
        raise ViolationError(f"I6: steps {sorted(files)} all have {shared.pop().decode()}")


def check_newest_two(content: Content) -> None:
    """I6, once what policies do not keep is deleted: the newest step and the one before it have no file in common.

    Nothing is deleted where the newest's manifest went wrong.
    """
    newest_folder = max(counting_in(content), default=None)
    if newest_folder is None or read_manifest(content[newest_folder.manifest_key]) is None:
        return
    files = _files_of_steps(content)
    older, newest = sorted(files)[-2:] if len(files) > 1 else (0, 0)
    shared = files[older] & files[newest] if older != newest else set()
    if shared:
        raise ViolationError(f"I6: steps {older} and {newest} both have {shared.pop().decode()}")


def _files_of_steps(content: Content) -> dict[int, set[bytes]]:
    """The files that can be shared, of the newest folder of each step that counts, as their versions."""
    by_step = {folder.step: folder for folder in sorted(counting_in(content))}
    steps = {folder: step for step, folder in by_step.items()}
    files: dict[int, set[bytes]] = {step: set() for step in by_step}
    for key, data in content.items():
        folder, version = parse_folder(key.partition("/")[0]), data.partition(VERSION)[2]
        if folder in steps and version:
            files[steps[folder]].add(version)
    return files


class Invariants:
    """All seven, checked in order at every new state; what depends on the content alone, once for each content.

    `next_life` is the program's root of an incarnation that nobody has met yet, `choices` the steps that a person asked
    for, which may fail without breaking I4. With `deletes_two` a save may be followed by deletions that leave, for a
    moment, two of one family: I6 is looked at between saves alone.
    """

    def __init__(
        self, explorer: Explorer, next_life: Node, only: str | None = None, *, deletes_two: bool = False
    ) -> None:
        self._only = only
        self._deletes_two = deletes_two
        self._explorer = explorer
        self._next_life = next_life
        self._restored: dict[int, tuple[Ancestry, Facts]] = {}
        self._gone: dict[tuple[int, int], set[Folder]] = {}
        self._alive: set[tuple[int, Node, frozenset[str]]] = set()
        self._sound: set[tuple[int, frozenset[str]]] = set()
        self._apart: set[int] = set()
        self._tops: dict[int, int] = {}
        self._newest_claims: dict[int, Claim | None] = {}

    def __call__(self, before: State | None, after: State, by: int) -> None:
        try:
            self._check(before, after, by)
        except ViolationError as violation:
            if self._only is None or str(violation).startswith(f"{self._only}:"):
                raise

    def _check(self, before: State | None, after: State, by: int) -> None:
        contents, content = self._explorer.storage.contents, after.content
        facts = [node.facts for node in after.nodes]
        if before is not None and before.content != content and by >= 0:
            deleted = self._deleted(before.content, content)
            check_base_is_kept(contents[before.content], deleted, before.nodes[by].facts, facts)
        if UNCLAIMED not in after.damaged:
            check_claims(facts)
            if before is not None and by >= 0 and before.content != content and before.nodes[by].facts.has_read:
                check_who_is_ended(contents[before.content], contents[content], after.nodes[by], after.damaged)
        restored, ends = self._of_next_life(content)
        is_late = self._is_late(after)
        if content not in self._apart and not is_late and any(self._rests(content, each) for each in facts):
            check_newest_two(contents[content])
            self._apart.add(content)
        if (content, after.damaged) not in self._sound:
            check_shards_are_there(contents[content], after.damaged)
            if not self._deletes_two:
                check_two_copies(contents[content])
            check_lives(ends, damaged=after.damaged)
            self._sound.add((content, after.damaged))
        if before is not None and by >= 0 and UNREADABLE in after.damaged:
            check_something_is_left(self._of_next_life(before.content)[1], ends)
        check_promises(after.promised, restored)
        for node in after.nodes:
            if node.op is not None and node.facts.number and (content, node, after.damaged) not in self._alive:
                holds_newest = EMPTIED in after.damaged and self._holds_newest(content, node)
                if holds_newest or node.facts.number == self._top(content):
                    marks = after.damaged - {UNCLAIMED} if holds_newest else after.damaged
                    check_lives(self._explorer.alone(content, node)[0], damaged=marks)
                self._alive.add((content, node, after.damaged))

    def _deleted(self, before: int, after: int) -> set[Folder]:
        """The checkpoints that are in one content and not in another."""
        memo = (before, after)
        if memo not in self._gone:
            contents = self._explorer.storage.contents
            self._gone[memo] = set(manifests_in(contents[before])) - set(manifests_in(contents[after]))
        return self._gone[memo]

    def _rests(self, content: int, facts: Facts) -> bool:
        """Whether it is the newest incarnation, between two saves."""
        return facts.saves > 0 and not facts.is_saving and facts.number == self._top(content)

    @staticmethod
    def _is_late(state: State) -> bool:
        """Whether a manifest has just landed late: the save under way did not know of it, the next one will."""
        landed = [int(mark.removeprefix(LATE)) for mark in state.damaged if mark.startswith(LATE)]
        return bool(landed) and max(node.facts.saves for node in state.nodes) < max(landed) + 2

    def _top(self, content: int) -> int:
        if content not in self._tops:
            self._tops[content] = top_number(self._explorer.storage.contents[content])
        return self._tops[content]

    def _holds_newest(self, content: int, node: Node) -> bool:
        """Whether the newest claim that is there is this process's own: what has another number ends it no more.

        A manifest under its own number may: one of before the root was emptied, whose create was under way.
        """
        if content not in self._newest_claims:
            claims = [key for key in self._explorer.storage.contents[content] if parse_claim_key(key)]
            data = self._explorer.storage.contents[content][max(claims)] if claims else None
            self._newest_claims[content] = decode(data, Claim, "claim") if data else None
        claim = self._newest_claims[content]
        if claim is None or claim.number != node.facts.number or writer_of(claim) != node.process.index:
            return False
        found = manifests_in(self._explorer.storage.contents[content])
        return all(m and m.writer_id == claim.writer_id for f, m in found.items() if f.incarnation == claim.number)

    def _of_next_life(self, content: int) -> tuple[Ancestry, Facts]:
        """What a fresh lone incarnation restores (its first promise is that and one more), and how it ends."""
        if content not in self._restored:
            facts, _, promises = self._explorer.alone(content, self._next_life)
            self._restored[content] = (promises[0] if promises else (), facts)
        return self._restored[content]


class Promises:
    """What is promised once a step was made: ghost history.

    An acknowledgement replaces what it builds on. A rollback takes back what it does not build on from the moment its
    manifest is there, if it then decides; one that was only read first, no more than what was there then.
    Damage is nobody's promise.
    """

    def __init__(self, contents: list[Content]) -> None:
        self._contents = contents
        self._rollbacks: dict[tuple[int, int], tuple[frozenset[str], int] | None] = {}

    def __call__(self, before: State, after: State, by: int) -> State:
        promised = after.promised
        if before.damaged != after.damaged:
            promised = frozenset(name for name in promised if name.partition("@")[0] not in after.damaged)
        if before.content != after.content:
            rollback = self._rolled_back_to(before.content, after.content)
            if rollback is not None:
                builds_on, writer = rollback
                if any(node.facts.has_read for node in after.nodes if node.process.index == writer):
                    start = f"{KNOWN}{writer}: "
                    cut = {mark.removeprefix(start) for mark in after.damaged if mark.startswith(start)} - builds_on
                    after = after._replace(damaged=after.damaged | {CUT + name for name in cut})
                    promised -= cut
                else:
                    promised &= builds_on
        for ancestry in after.nodes[by].promises if by >= 0 else ():
            promised -= frozenset(ancestry)
            if not {ancestry[-1].partition("@")[0], CUT + ancestry[-1]} & after.damaged:
                promised |= {ancestry[-1]}
        if by >= 0 and after.nodes[by].facts.has_read and not before.nodes[by].facts.has_read:
            after = after._replace(damaged=after.damaged | self._known(after, after.nodes[by]))
        return after if promised == after.promised else after._replace(promised=promised)

    def _known(self, state: State, node: Node) -> frozenset[str]:
        """Marks of what a process knows that has just read what it takes up later: what is committed, and the newest
        claim, or its own."""
        content = self._contents[state.content]
        claims = _claims_in(content)
        writer = node.process.index if node.facts.number or not claims else claims[max(claims)]
        names = {found[-1] for folder in manifests_in(content) if (found := ancestry_in(content, folder))}
        return frozenset(f"{KNOWN}{node.process.index}: {name}" for name in {f"claim of {writer}", *names})

    def _rolled_back_to(self, before: int, after: int) -> tuple[frozenset[str], int] | None:
        """The ancestry of a rollback's manifest that has just come and decides, and who wrote it; None if none has."""
        if (before, after) not in self._rollbacks:
            found = manifests_in(self._contents[after])
            new = set(found) - set(manifests_in(self._contents[before]))
            decides = max((folder.incarnation for folder in found), default=0)
            rollbacks = [
                (frozenset(ancestry_in(self._contents[after], f)), writer_of(m))
                for f in new
                if f.incarnation == decides and (m := found[f]) and m.reason == "rollback"
            ]
            self._rollbacks[before, after] = rollbacks[0] if rollbacks else None
        return self._rollbacks[before, after]
