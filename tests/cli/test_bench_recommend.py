"""`ckptflow bench`: what is tried, what is recommended, and how it is shown; pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.bench.grid import MIB, Point, Rates, Setting, settings
from ckptflow.bench.recommend import recommend
from ckptflow.cli.bench import print_points
from ckptflow.cli.render import make_console


def test_what_is_asked_for_twice_is_tried_once() -> None:
    fitting, _ = settings(is_object_store=False, memory_bytes=2**40, concurrencies=(2, 2, 1), shard_mib=(16, 16))
    assert sorted(map(str, fitting)) == ["1 at once of 16 MiB", "2 at once of 16 MiB"]


@given(st.booleans(), st.integers(1, 4096))
def test_nothing_is_tried_that_takes_more_memory(is_object_store: bool, memory_mib: int) -> None:
    fitting, too_large = settings(is_object_store=is_object_store, memory_bytes=memory_mib * MIB)
    assert all(setting.memory_bytes <= memory_mib * MIB for setting in fitting)
    assert all(setting.memory_bytes > memory_mib * MIB for setting in too_large)
    assert len({*fitting, *too_large}) == len(fitting) + len(too_large) == (20 if is_object_store else 9)


def point(concurrency: int, shard_mib: int, save: float, restore: float = 100.0, rounds: int = 3) -> Point:
    return Point(
        Setting(concurrency, shard_mib * MIB),
        Rates([save * MIB] * rounds, [200.0 * MIB] * rounds, [0.3] * rounds),
        Rates([restore * MIB] * rounds, [200.0 * MIB] * rounds, [0.3] * rounds),
    )


rates = st.floats(1, 10_000)


measurements = st.tuples(st.integers(1, 32), st.integers(1, 128), rates, rates)


@given(st.lists(measurements, min_size=1, unique_by=lambda each: each[:2]))
def test_what_is_recommended_is_fast_and_no_smaller_one_is(found: list[tuple[int, int, float, float]]) -> None:
    points = [point(*each) for each in found]
    chosen = next(p for p in points if p.setting == recommend(points).setting)
    fastest = max(p.save.bytes_per_s for p in points)
    assert chosen.save.bytes_per_s >= 0.95 * fastest
    smaller = [p for p in points if p.setting.memory_bytes < chosen.setting.memory_bytes]
    assert all(p.save.bytes_per_s < 0.95 * fastest for p in smaller)


def test_what_chance_explains_decides_nothing() -> None:
    """Rounds that lie apart by a fifth: the smaller setting, and it says so."""

    def noisy(concurrency: int, save: float) -> Point:
        found = point(concurrency, 64, save)
        found.save.ours = [0.8 * save * MIB, save * MIB, 1.2 * save * MIB]
        return found

    found = recommend([noisy(2, 850), noisy(8, 1000)])
    assert found.setting.concurrency == 2
    assert "rounds of one setting differ by about 20% either way" in found.reasons[-1]
    assert recommend([noisy(2, 700), noisy(8, 1000)]).setting.concurrency == 8
    assert recommend([point(2, 64, 850), point(8, 64, 1000)]).setting.concurrency == 8
    once = point(4, 64, 100, rounds=1)  # says nothing about chance, not that there is none
    assert recommend([noisy(2, 850), noisy(8, 1000), once, once]).setting.concurrency == 2
    wild = [noisy(2, 500), noisy(8, 1000)]
    for each in wild:
        each.save.ours = [0.4 * each.save.ours[1], each.save.ours[1], 1.6 * each.save.ours[1]]
    assert "differ by 60% either way: little can be told" in recommend(wild).reasons[-1]


def test_the_reasons_say_what_was_weighed() -> None:
    points = [point(2, 64, 970, restore=500), point(8, 64, 1000, restore=900), point(1, 16, 400)]
    found = recommend(points)
    assert found.setting == Setting(2, 64 * MIB)
    assert found.reasons == (
        "saves at 970 MiB/s, 485% of the raw client",
        "within 3% of the fastest (8 at once of 64 MiB), with 192 MiB of memory in place of 576",
        "restores at 500 MiB/s; 8 at once of 64 MiB would at 900 MiB/s",
    )
    assert "nothing else was measured" in recommend([point(2, 64, 970)]).reasons[-1]
    assert "measured only once" in recommend([point(2, 64, 970, rounds=1)]).reasons[-1]
    with pytest.raises(ValueError, match="nothing was measured"):
        recommend([Point(Setting(1, MIB))])


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_a_narrow_terminal_is_shown_whole_figures(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console = make_console()
    with console.capture() as shown:
        print_points(console, [point(1, 64, 1234.0, restore=5678.0)], Setting(1, 64 * MIB))
    *_, line = shown.get().splitlines()
    assert len(line) <= columns
    assert line.split()[:2] == ["1", "64"]
    assert {"1,234", "5,678"} <= set(line.split())
    assert ("617%" in line) == (columns >= 60)
    assert ("0.30" in line) == (columns == 120)


def test_percentiles_of_requests() -> None:
    rates = Rates(request_s=[number / 100 for number in range(100, 0, -1)])
    assert [rates.request_percentile_s(percent) for percent in (50, 95, 99)] == [0.51, 0.96, 1.0]
    assert Rates(request_s=[3.0]).request_percentile_s(99) == 3.0
    assert Rates().request_percentile_s(50) == 0.0
