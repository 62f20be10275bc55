"""The storage contract as tests that anyone can run on their own storage, and stores for testing what stands on one.

A subclass supplies one fixture and inherits every test::

    class TestMyStorage(StoreContract):
        @pytest.fixture
        def backend(self) -> Backend:
            return MyBackend(...)   # opens stores on one empty root, and reads and writes behind their back

The tests reach behind the store (`raw_put`, `raw_get`, `raw_list`), because a store that is asked about its own work
can agree with itself and be wrong. They need nothing but the standard library: `ckptflow doctor` runs the same ones.
Nothing else belongs here.
"""

from ckptflow.storage.wrappers import CountingStore, Fault, FaultyStore, LatencyStore, MemoryStore, StoreWrapper
from ckptflow.testing.contract import StoreContract
from ckptflow.testing.copies import CopyContract
from ckptflow.testing.tools import Backend, read_whole

__all__ = [
    "Backend",
    "CopyContract",
    "CountingStore",
    "Fault",
    "FaultyStore",
    "LatencyStore",
    "MemoryStore",
    "StoreContract",
    "StoreWrapper",
    "read_whole",
]
