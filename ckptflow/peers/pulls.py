"""One restore in which storage is read once: each worker reads its share, and gets the rest of the others.

Peers make it faster, and decide nothing: whatever cannot be had of them, or is wrong, is read from storage.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import cached_property
from types import TracebackType
from typing import Self

from ckptflow.errors import PeerError
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import Wanted
from ckptflow.peers import descriptors
from ckptflow.peers.exchange import LEAST_BUFFERS, SharedRange, Terms, agree_on_plan, in_turn_of, pack, wants_of
from ckptflow.peers.link import TOKEN_BYTES, ConnectError, Link, LinkError, SilentError
from ckptflow.peers.listener import Listener, find_listener, host_of
from ckptflow.peers.loans import PHASES, GoneError, Key, Loans
from ckptflow.peers.watch import Peer
from ckptflow.stops import awake_s
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.ranges import Range
from ckptflow.transfer.sharing import Division
from ckptflow.transfer.streams import StoppedError

logger = logging.getLogger("ckptflow")

_MOST_LOST_S = 10.0  # in a restore, by waiting in vain for others: some connections, or two that fall silent
_SLOWER = 8  # times than an owner's share of what this worker's storage gives: then that is the better place to read
_LOOK_S = 0.25


class Phase(IntEnum):
    """The readings of one checkpoint, in their order; each is of what all workers want in it."""

    EARLY = 0
    VERIFY = 1
    REST = 2


class Exchange:
    """This worker's end, for one restore. Nothing listens before `terms`, nor after `close`.

    A checkpoint is a round: all workers call `terms`, tell one another what it returns, and call `share` with that;
    then each reads, with what `reading` returns. The next call of `terms` says that all have done with it.
    """

    def __init__(
        self, worker: int, peers: Sequence[Peer], pool: BufferPool, goes_on: Callable[[], None] = lambda: None
    ) -> None:
        """`goes_on` is called, from any thread, whenever something has come of another worker, or will, as it says."""
        self.worker = worker
        self._peers = peers
        self._pool = pool
        self._token = secrets.token_bytes(TOKEN_BYTES) if worker == 0 else b""
        self._loans = Loans()
        self._listener: Listener | None = None
        self._has_begun = False
        self._terms: Sequence[Terms] = ()
        self._manifest: Manifest | None = None
        self._round = 0
        self._links = _Links(worker, peers, goes_on)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def terms(self, manifest: Manifest, early: Sequence[Wanted], rest: Sequence[Wanted]) -> Terms:
        """What this worker wants of a checkpoint, and where it can be reached."""
        self._loans.end()
        self._terms = ()
        if self._pool.count < LEAST_BUFFERS or not self._has_room:
            return Terms()
        if not self._has_begun:
            self._has_begun = True
            self._listener = find_listener([host_of(peer.address) for peer in self._peers], self.worker, self._loans)
            # Ctrl-C may come just before `close`: then what is collected is closed.
            weakref.finalize(self, _end, self._listener, self._loans).atexit = False
        return Terms(
            address=self._listener.address if self._listener is not None else "",
            port=self._listener.port if self._listener is not None else 0,
            buffer_bytes=self._pool.buffer_bytes,
            buffer_count=self._pool.count,
            early=pack(wants_of(manifest, early)),
            rest=pack(wants_of(manifest, rest)),
            token=self._token,
        )

    @cached_property
    def _has_room(self) -> bool:
        """Whether this worker may have a connection to each of the others, and one from each."""
        count = 2 * (len(self._peers) - 1)
        is_there = descriptors.has_room(count)
        if not is_there:
            text = (
                "worker %d may have %d file descriptors (ulimit -n), of which %d connections to others could leave "
                "too few for storage: all workers read everything from there. Raise the limit on each of them, or pass "
                'restore_from="storage"'
            )
            logger.warning(text, self.worker, descriptors.limit(), count)
        return is_there

    def share(self, manifest: Manifest, terms: Sequence[Terms]) -> None:
        """From here on this worker serves the others. The same `terms` on all workers, in their order.

        Raises `PeerError`, on all of them, for terms that make no sense.
        """
        for worker, each in enumerate(terms):
            if each.problem:
                raise PeerError(
                    f"worker {worker} ({self._peers[worker].address}) says that it has {each.problem}, which "
                    "cannot be: all workers must run the same version of ckptflow"
                )
        self._manifest, self._terms = manifest, terms
        self._round += 1
        self._loans.advance()
        self._links.begin_round(terms)
        if self._listener is not None and len(terms[0].token) == TOKEN_BYTES:
            self._listener.open(terms[0].token)

    def end_round(self) -> None:
        """All workers have done with the checkpoint: nothing of it is kept for them."""
        self._loans.end()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A step of this worker: whatever it raises, those who wait for what it would read are told at once."""
        try:
            yield
        except BaseException:
            self._loans.withdraw((self._round + 1) * PHASES)
            self._links.close()  # nothing is kept for this worker
            raise

    @contextmanager
    def reading(self, phase: Phase | None) -> Iterator[Reading | None]:
        """This worker's part in one phase, or, without a phase, what it reads by itself while others may still come
        for what it has read before; None if nobody can come. What it raises tells those who wait for it."""
        with self.telling():
            yield self._begin(phase)

    def _begin(self, phase: Phase | None) -> Reading | None:
        if self._manifest is None or not self._terms:
            return None
        if phase is None:
            return Reading(0, (), (), self._pool.count, self._loans, self._links)
        plan = agree_on_plan(self._manifest, self._terms, "early" if phase is Phase.EARLY else "rest")
        number = self._round * PHASES + phase
        own = [each for each in plan if each.owner == self.worker]
        others = in_turn_of(self.worker, len(self._terms), plan)
        self._loans.begin(number, {_key(number, each.range): each.wanters - {self.worker} for each in own})
        read_buffers = self._read_buffers if own or others else self._pool.count
        return Reading(number, own, others, read_buffers, self._loans, self._links)

    @property
    def _read_buffers(self) -> int:
        """For what comes from storage. All workers together read no more than about a pool ahead of the slowest:
        each of them has memory open for all of it. Half is for what comes from others: nobody waits for ever."""
        half = self._pool.count // 2
        return max(min(2, half), min(half, self._pool.count // len(self._terms)))

    def close(self) -> None:
        """Nothing listens, no connection is left, and all buffers are back."""
        self._links.close()
        _end(self._listener, self._loans)


class Reading:
    """One phase, as the reader sees it: `transfer.sharing.Sharing`."""

    def __init__(
        self,
        number: int,
        own: Sequence[SharedRange],
        others: Sequence[SharedRange],
        read_buffers: int,
        loans: Loans,
        links: _Links,
    ) -> None:
        self.division = Division([each.range for each in own], [each.range for each in others], read_buffers)
        self._number = number
        self._own = own
        self._others = others
        self._loans = loans
        self._links = links
        self._news = threading.Condition()
        self._asked: dict[int, int] = {}  # how many ranges each owner was asked for
        self._places: list[int] = []  # of each range among those of its owner
        counts: dict[int, int] = {}
        for each in others:
            self._places.append(counts.get(each.owner, 0))
            counts[each.owner] = self._places[-1] + 1
        self._owners = len(counts)
        self._began_s = time.monotonic()
        self._lent_bytes = 0
        self._bytes_per_s = 0.0  # of what this worker has read for others: what its storage gives

    def pull(self, number: int, into: memoryview, is_stopped: Callable[[], bool]) -> bool:
        each = self._others[number]
        self._wait_for_turn(each.owner, self._places[number], is_stopped)
        try:
            key = _key(self._number, each.range)
            return self._links.pull(each.owner, key, into, is_stopped, self._least_bytes_per_s)
        finally:
            with self._news:
                self._asked[each.owner] = self._places[number] + 1
                self._news.notify_all()

    def distrust(self, number: int, why: str) -> None:
        self._links.give_up(self._others[number].owner, why)

    def lend(self, number: int, view: memoryview, give_back: Callable[[], None]) -> None:
        self._lent_bytes += len(view)
        self._bytes_per_s = self._lent_bytes / max(time.monotonic() - self._began_s, _LOOK_S)
        self._loans.lend(_key(self._number, self._own[number].range), view, give_back)

    def advance(self) -> None:
        self._loans.advance()

    def press(self) -> None:
        for worker in self._loans.press():
            logger.info("worker %d did not fetch what was read for it and must read that from storage itself", worker)

    def _least_bytes_per_s(self) -> float:
        """What each of the owners has to send: else the storage were faster, even if all others read there as well."""
        return self._bytes_per_s / (_SLOWER * max(1, self._owners))

    def _wait_for_turn(self, owner: int, place: int, is_stopped: Callable[[], bool]) -> None:
        """An owner gives its ranges in their order, and may have room for one alone."""
        with self._news:
            while self._asked.get(owner, 0) != place:
                if is_stopped():
                    raise StoppedError
                self._news.wait(_LOOK_S)


class _Links:
    """The connections to the other workers, each made when it is needed first; who failed is not asked again.

    A worker that has failed is given up for this restore; one that had an error of its own, for this checkpoint. After
    `_MOST_LOST_S` of waiting in vain no further connection is made; after as long on connections, while none gives
    anything, none is used.
    """

    def __init__(self, worker: int, peers: Sequence[Peer], goes_on: Callable[[], None]) -> None:
        self._worker = worker
        self._peers = peers
        self._goes_on = goes_on
        self._terms: Sequence[Terms] = ()
        self._idle: dict[int, Link] = {}  # those that no thread uses
        self._failed: set[int] = set()
        self._gone: set[int] = set()
        self._lost_s = 0.0  # by all threads, in connecting and in silence
        self._silent_s = 0.0  # in silence, since a connection has given something
        self._has_lost = False
        self._has_room = True  # for connections
        self._lock = threading.Lock()

    def begin_round(self, terms: Sequence[Terms]) -> None:
        self._terms = terms
        self._gone = set()

    def pull(
        self,
        owner: int,
        key: Key,
        into: memoryview,
        is_stopped: Callable[[], bool],
        least_bytes_per_s: Callable[[], float],
    ) -> bool:
        """Whether it came. For one thread at a time for each owner."""
        link, is_sound = self._idle.pop(owner, None), False
        began_s = awake_s()
        try:
            if self._is_given_up(owner, is_connected=link is not None):
                return False
            link = link or self._connect(owner)
            link.pull(key, into, is_stopped, self._goes_on, least_bytes_per_s)
            self._goes_on()
            self._silent_s = 0.0
            is_sound = True
        except GoneError:
            self._gone.add(owner)
            logger.info("worker %d cannot read its share: it is read from storage", owner)
        except ConnectError as error:
            self._lose(owner, error, connecting_s=awake_s() - began_s)
            if descriptors.are_out(error.__cause__):
                self._make_room()
        except LinkError as error:  # one that is too slow has given something for the time
            self._lose(owner, error, silent_s=error.silent_s if isinstance(error, SilentError) else 0.0)
        finally:
            self._put_away(owner, link, is_sound)
        return is_sound

    def give_up(self, owner: int, why: str) -> None:
        """From any thread."""
        with self._lock:
            is_news = owner not in self._failed
            self._failed.add(owner)
        if is_news:
            text = "worker %d (%s) %s; what this worker would get from it is read from storage"
            logger.warning(text, owner, self._peers[owner].address, why)

    def close(self) -> None:
        """Those that no thread uses: all, once none pulls any more."""
        for owner in list(self._idle):
            link = self._idle.pop(owner, None)  # a thread may just have taken it
            if link is not None:
                link.close()

    def _is_given_up(self, owner: int, *, is_connected: bool) -> bool:
        lost_s = self._silent_s if is_connected else self._lost_s
        is_over = lost_s >= _MOST_LOST_S or not self._has_room
        return is_over or owner in self._failed or owner in self._gone

    def _connect(self, owner: int) -> Link:
        terms = self._terms[owner]
        return Link.connect(terms.address, terms.port, self._terms[0].token, self._worker, owner)

    def _put_away(self, owner: int, link: Link | None, is_sound: bool) -> None:
        """After its use: for the next one, or for good."""
        with self._lock:
            is_kept = link is not None and is_sound and self._has_room
            if link is not None and is_kept:
                self._idle[owner] = link
        if link is not None and not is_kept:
            link.close()

    def _make_room(self) -> None:
        """Reading from storage needs descriptors, too: the connections go, those in use after that."""
        with self._lock:
            self._has_room = False
        self.close()

    def _lose(self, owner: int, error: LinkError, *, connecting_s: float = 0.0, silent_s: float = 0.0) -> None:
        """Gives it up. Of a network that is cut one warning is enough, whomever it hits."""
        with self._lock:
            is_first = not self._has_lost
            self._has_lost = True
            self._failed.add(owner)
            was_over = self._lost_s >= _MOST_LOST_S
            self._lost_s += connecting_s + silent_s
            self._silent_s += silent_s
            is_over = self._lost_s >= _MOST_LOST_S
        text = (
            "worker %d (%s) %s; what this worker would get from it, and from others that cannot be reached or say "
            "nothing, is read from storage. If workers cannot connect to one another on any port, allow that, or pass "
            'restore_from="storage"'
        )
        logger.log(logging.WARNING if is_first else logging.DEBUG, text, owner, self._peers[owner].address, str(error))
        if is_over and not was_over:
            logger.info("no more connections to other workers are made: %.0f s were waited in vain", self._lost_s)
        if is_over and not was_over:
            logger.info("no more connections to other workers are made: %.0f s were waited in vain", self._lost_s)


def _end(listener: Listener | None, loans: Loans) -> None:
    if listener is not None:
        listener.close()
    loans.end()


def _key(phase: int, each: Range) -> Key:
    return Key(phase, each.shard, each.begin, each.end)
