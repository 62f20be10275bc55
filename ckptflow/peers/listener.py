"""Where other workers come for what this one has read: one port, while a restore lasts, a thread for each of them."""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from ckptflow.peers.descriptors import are_out
from ckptflow.peers.link import CONNECT_S, LinkError, admit, serve, shut
from ckptflow.peers.loans import Loans
from ckptflow.stops import awake_s
from ckptflow.threads import left_alone
from ckptflow.transfer.streams import StoppedError

logger = logging.getLogger("ckptflow")

MAX_STRANGERS = 16  # connections more than there are workers
_LOOK_S = 0.2
_LEAVING_S = 2.0


class Listener:
    """Listens from its making to `close`, at an address of this machine and a free port; who comes waits for `open`.

    Admits each other worker of the job, of each the newest connection, and nobody else. Nobody holds up another. Its
    threads are daemons: they end with `close`, and would not keep a process that forgets that.
    """

    def __init__(self, address: str, worker: int, world_size: int, loans: Loans) -> None:
        """Raises OSError if that address cannot be bound."""
        family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.bind((address, 0))
            self._socket.listen(min(world_size + MAX_STRANGERS, 1024))  # all workers may come at once
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(_LOOK_S)
        self.address, self.port = self._socket.getsockname()[:2]
        self._token = b""
        self._worker = worker
        self._world_size = world_size
        self._loans = loans
        self._is_closed = False
        self._strangers: set[socket.socket] = set()
        self._admitted: dict[int, socket.socket] = {}
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._accepting: threading.Thread | None = None

    def open(self, token: bytes) -> None:
        """Lets in whoever knows the token, from now on."""
        if self._accepting is None:
            self._token = token
            accepting = threading.Thread(target=self._accept, name="ckptflow-peers", daemon=True)
            try:
                accepting.start()
            except RuntimeError:  # no more threads: the others get nothing here, and read by themselves
                self._socket.close()
            else:
                self._accepting = accepting  # one that has begun: Ctrl-C may have come before

    def close(self) -> None:
        """Nothing listens any more, and all connections end. Waits a moment for their threads."""
        self._end_connections()
        shut(self._socket)  # Linux tells its thread at once; elsewhere it looks soon
        until_s = time.monotonic() + _LEAVING_S
        accepting = set() if self._accepting is None else {self._accepting}
        for thread in (accepting | self._threads) - {threading.current_thread()}:
            thread.join(max(0.0, until_s - time.monotonic()))
        self._socket.close()

    def _end_connections(self) -> None:
        self._is_closed = True
        for each in (*self._strangers.copy(), *self._admitted.copy().values()):
            shut(each)

    def _accept(self) -> None:
        with self._socket:
            while not self._is_closed:
                try:
                    connection, _ = self._socket.accept()
                except (TimeoutError, ConnectionAbortedError):
                    continue
                except OSError as error:  # nobody else comes; who is here stays
                    if not self._is_closed:
                        logger.debug("no worker can come to this one any more: %s", error.strerror)
                    if are_out(error):  # reading from storage needs descriptors, too
                        self._end_connections()
                    return
                if len(self._strangers) + len(self._admitted) >= self._world_size + MAX_STRANGERS or self._is_closed:
                    connection.close()
                    continue
                self._strangers.add(connection)
                thread = threading.Thread(
                    target=self._attend, args=(connection,), name="ckptflow-peers-serve", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # no more threads
                    self._strangers.discard(connection)
                    connection.close()
                    continue
                self._threads = {each for each in self._threads if each.is_alive()} | {thread}

    def _attend(self, connection: socket.socket) -> None:
        with connection:
            try:
                worker = admit(connection, self._token, self._worker, self._world_size)
            except LinkError as error:
                logger.debug("refused a connection from something that is not a worker of this job: %s", str(error))
                return
            finally:
                self._strangers.discard(connection)
            self._serve(connection, worker)

    def _serve(self, connection: socket.socket, worker: int) -> None:
        with self._lock:
            before, self._admitted[worker] = self._admitted.get(worker), connection
        if before is not None:
            shut(before)
        self._loans.arrive(worker)
        try:
            serve(connection, worker, self._loans, lambda: self._is_closed)
        except StoppedError:
            pass
        except LinkError as error:
            logger.debug("worker %d comes no more for what this worker has read: %s", worker, str(error))
        finally:
            with self._lock:
                is_newest = self._admitted.get(worker) is connection
                if is_newest:
                    del self._admitted[worker]
            if is_newest:
                self._loans.leave(worker)


def find_listener(hosts: Sequence[str], worker: int, loans: Loans) -> Listener | None:
    """At this worker's host, as all workers know it; if that is no address of this machine, as behind a service's
    name, at the one from which the others are reached. None, with a warning, if neither can be, or is known in time."""
    addresses, until_s = _addresses(hosts, worker), awake_s() + CONNECT_S

    def find_next() -> str:
        return left_alone("ckptflow-names", lambda: next(addresses, "")).result(max(0.0, until_s - awake_s()))

    why = f"{hosts[worker]} is no address of this machine, and none was found on the way to another worker"
    try:
        for address in iter(find_next, ""):
            try:
                return Listener(address, worker, len(hosts), loans)
            except OSError as error:
                why = f"{address}: {error}"
    except TimeoutError:
        why = f"the name {hosts[worker]}, or that of another worker, was not resolved within {CONNECT_S:g} s"
    except RuntimeError as error:  # no more threads
        why = str(error)
    logger.warning("others cannot get from worker %d what it reads, and read that from storage: %s", worker, why)
    return None


def host_of(address: str) -> str:
    """Of `host:port`, `[::1]:port`."""
    return address.rpartition(":")[0].strip("[]") or address


def _addresses(hosts: Sequence[str], worker: int) -> Iterator[str]:
    """Looks up names as it goes, and no further one once two have had no address: the next ones would have none."""
    resolve = functools.cache(_resolved)
    own = resolve(hosts[worker])
    others = list(dict.fromkeys(host for number, host in enumerate(hosts) if number != worker))
    # Some systems resolve their own name to loopback, where no other machine would come.
    if own and (not _is_loopback(own) or all(_is_loopback(resolve(host)) for host in others)):
        yield own
    other = next(filter(None, map(resolve, others[: 2 if own else 1])), None)
    if other is not None:
        yield from _source_of_route(other)


def _resolved(host: str) -> str:
    """Empty if that is no address of one machine; 0.0.0.0 is every address of each."""
    try:
        found = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, ValueError):  # the latter: it is no name
        return ""
    return "" if ipaddress.ip_address(found).is_unspecified else found


def _is_loopback(address: str) -> bool:
    return bool(address) and ipaddress.ip_address(address).is_loopback


def _source_of_route(address: str) -> list[str]:
    """This machine's address on the way there. Nothing is sent."""
    try:
        family = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 1))
            return [str(probe.getsockname()[0])]
    except OSError:
        return []
