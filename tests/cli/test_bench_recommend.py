"""`ckptflow bench`: what is tried, how sure it is, what is recommended, and how it is shown; pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.bench.grid import MIB, Setting, default_setting, settings
from ckptflow.bench.profiles import PROFILES
from ckptflow.bench.rates import CONFIDENCE, CONTENDERS, NARROW, Point, Rates, median_interval, next_point
from ckptflow.bench.recommend import LEAST_GAIN, recommend
from ckptflow.cli.bench import print_points
from ckptflow.cli.render import make_console

DEFAULT = default_setting(is_object_store=False)


def test_what_is_asked_for_twice_is_tried_once_after_the_defaults() -> None:
    fitting, _ = settings(is_object_store=False, memory_bytes=2**40, concurrencies=(2, 2, 1), shard_mib=(16, 16))
    assert list(map(str, fitting)) == ["the defaults", "2 at once of 16 MiB", "1 at once of 16 MiB"]


@given(st.booleans(), st.integers(1, 4096))
def test_nothing_is_tried_that_takes_more_memory(is_object_store: bool, memory_mib: int) -> None:
    fitting, too_large = settings(is_object_store=is_object_store, memory_bytes=memory_mib * MIB)
    assert all(setting.memory_bytes <= memory_mib * MIB for setting in fitting)
    assert all(setting.memory_bytes > memory_mib * MIB for setting in too_large)
    assert len({*fitting, *too_large}) == len(fitting) + len(too_large) == (13 if is_object_store else 10)


def point(concurrency: int, shard_mib: int, saves: Sequence[float], restores: Sequence[float] | None = None) -> Point:
    """Of these MiB/s in each round; a concurrency of 0 is the defaults."""

    def rates(values: Sequence[float]) -> Rates:
        rounds = len(values)
        ours, raw = [value * MIB for value in values], [200.0 * MIB] * rounds
        return Rates(ours, raw, [0.3] * rounds, streams=4, slowest=[1.0] * rounds)

    setting = Setting(concurrency, shard_mib * MIB) if concurrency else DEFAULT
    return Point(setting, rates(saves), rates(restores or [100.0] * len(saves)))


def test_an_interval_has_the_true_median_as_often_as_it_says() -> None:
    """Whatever the distribution: here one in ten rounds is ten times slower."""
    assert median_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert median_interval([5.0, 1.0, 4.0, 2.0, 3.0]) == (1.0, 5.0)
    assert median_interval([8, 7, 6, 5, 4, 3, 2, 1]) == (2, 7)
    chance = random.Random(0)
    for rounds in (5, 8, 13, 30):
        hits = 0
        for _ in range(2000):
            values = [chance.random() * (0.1 if chance.random() < 0.1 else 1) for _ in range(rounds)]
            found = median_interval(values)
            assert found is not None
            hits += found[0] <= 4 / 9 <= found[1]  # half of all: 0.1 + 0.9 x = 0.5
        assert hits / 2000 >= CONFIDENCE - 0.02


def test_everything_once_then_what_matters_until_it_is_sure() -> None:
    points = [Point(DEFAULT), *(Point(Setting(n, 16 * MIB)) for n in range(1, 8))]
    order: list[Setting] = []
    while (chosen := next_point(points)) is not None:
        order.append(chosen.setting)
        for rates in (chosen.save, chosen.restore):
            rates.ours.append(100.0 * (chosen.setting.concurrency or 2) * (1 + NARROW / 2 * (chosen.rounds % 3 - 1)))
    assert order[: len(points)] == [each.setting for each in points]
    repeated = {each.setting for each in points if each.rounds > 1}
    assert repeated == {DEFAULT, *(Setting(n, 16 * MIB) for n in (7, 6, 5)[:CONTENDERS])}
    assert all(each.is_narrow for each in points if each.setting in repeated)


noisy = st.floats(0.9, 1.1)


@given(
    st.lists(st.tuples(st.integers(1, 32), st.floats(10, 1000), st.lists(noisy, min_size=5, max_size=8)), max_size=6)
)
def test_what_is_recommended_beats_the_defaults_surely_or_is_the_defaults(
    found: list[tuple[int, float, list[float]]],
) -> None:
    usual = point(0, 0, [95.0, 100.0, 105.0, 98.0, 103.0])
    points = [usual, *(point(n, 16, [rate * each for each in noise]) for n, rate, noise in found)]
    advice = recommend(points)
    if not advice.beats_defaults:
        assert advice.setting == DEFAULT
        assert all(min(each.save.ours) <= max(usual.save.ours) * 1.5 for each in points)
        return
    assert any(
        each.setting == advice.setting and each.save.bytes_per_s >= LEAST_GAIN * usual.save.bytes_per_s
        for each in points
    )


def test_runs_in_a_row_give_the_same_advice() -> None:
    """Rounds of one and the same speed differ by a fifth: in hundreds of runs, with three settings each, hardly one
    finds something better than the defaults. Where something is twice as fast, all of them find it."""
    chance = random.Random(1)

    def run(*speeds: tuple[int, int, float]) -> Setting:
        rounds = [(n, mib, [mean * chance.uniform(0.8, 1.2) for _ in range(7)]) for n, mib, mean in speeds]
        return recommend([point(n, mib, values) for n, mib, values in rounds]).setting

    alike = [run((0, 0, 100), (1, 64, 100), (4, 16, 100), (4, 64, 100)) for _ in range(300)]
    assert alike.count(DEFAULT) >= 297
    assert {run((0, 0, 100), (1, 64, 100), (4, 64, 200)) for _ in range(300)} == {Setting(4, 64 * MIB)}


def test_the_reasons_say_what_was_weighed() -> None:
    usual = point(0, 0, [100.0] * 5)
    found = recommend([usual, point(8, 64, [200.0] * 5, [400.0] * 5), point(2, 64, [190.0] * 5, [300.0] * 5)])
    assert found.setting == Setting(2, 64 * MIB)
    assert found.reasons == (
        "saves at 190 MiB/s, the defaults at 100 MiB/s: the difference is larger than the noise",
        "takes 192 MiB of memory, the defaults 260 MiB",
        "restores at 300 MiB/s, the defaults at 100 MiB/s",
    )
    assert "no setting that was tried saves faster" in recommend([usual, point(2, 64, [104.0] * 5)]).reasons[0]
    assert "large here" in recommend([point(0, 0, [1.0, 9, 2, 8, 5]), point(2, 64, [9.0] * 5)]).reasons[0]
    assert "too few rounds" in recommend([usual, point(2, 64, [900.0])]).reasons[0]
    assert "nothing else was measured" in recommend([usual]).reasons[0]
    without = recommend([point(2, 64, [900.0])])
    assert (without.beats_defaults, without.setting.concurrency) == (False, 2)
    with pytest.raises(ValueError, match="nothing was measured"):
        recommend([Point(Setting(1, MIB))])


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_every_width_has_a_bar_for_each_setting(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console = make_console()
    points = [point(0, 0, [617.0] * 5, [2345.0] * 5), point(1, 64, [1234.0] * 5, [5678.0] * 5)]
    with console.capture() as shown:
        print_points(console, points, Setting(1, 64 * MIB), worker_count=3)
    heading, usual, line = shown.get().splitlines()
    assert max(len(heading), len(usual), len(line)) <= columns
    assert usual.startswith("  defaults")
    assert line.startswith("▶ 1 of 64 MiB")  # seen without colours as well
    assert {"1,234", "5,678"} <= set(line.split())
    assert line.count("█") >= 6
    assert abs(line.count("█") - 2 * usual.count("█")) <= 1
    assert ("0%" in line) == (columns >= 60), line
    assert ("1.00, 1.00" in line) == (columns >= 60), line
    assert ("raw save" in heading) == (columns >= 80), heading
    assert ("0.30" in line) == (columns == 200)


def test_percentiles_of_requests() -> None:
    rates = Rates(request_s=[number / 100 for number in range(100, 0, -1)])
    assert [rates.request_percentile_s(percent) for percent in (50, 95, 99)] == [0.51, 0.96, 1.0]
    assert Rates(request_s=[3.0]).request_percentile_s(99) == 3.0
    assert Rates().request_percentile_s(50) == 0.0


def test_profiles_are_parameters_and_slots() -> None:
    assert PROFILES["bert-base"].size_bytes == 110_000_000 * 4 * 3
    assert PROFILES["llama-3-8b"].size_bytes == 8_030_000_000 * 2 * 3
    assert all(profile.size_bytes >= 4 * profile.parameters for profile in PROFILES.values())
