"""`ckptflow bench`: what is tried, how sure it is, what is recommended, and how it is shown; pure."""

from __future__ import annotations

import ast
import inspect
import math
import random
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow import CheckpointManager
from ckptflow.bench.grid import MIB, Setting, default_setting, settings
from ckptflow.bench.profiles import PROFILES
from ckptflow.bench.rates import CONFIDENCE, CONTENDERS, NARROW, Point, Rates, median_interval, next_point
from ckptflow.bench.recommend import LEAST_GAIN, Recommendation, recommend
from ckptflow.cli.bench import manager_call, print_points
from ckptflow.cli.render import make_console
from ckptflow.job.arguments import default_shard_bytes

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
    """What matters are those that take the least memory of all that are about as fast as the fastest."""
    speeds = {Setting(n, 16 * MIB): speed for n, speed in enumerate((100, 300, 480, 500, 440, 500, 500), 1)}
    points = [Point(DEFAULT), *map(Point, speeds)]
    order: list[Setting] = []
    while (chosen := next_point(points)) is not None:
        order.append(chosen.setting)
        for rates in (chosen.save, chosen.restore):
            rates.ours.append(speeds.get(chosen.setting, 200) * (1 + NARROW / 2 * (chosen.rounds % 3 - 1)))
    assert order[: len(points)] == [each.setting for each in points]
    repeated = [each for each in points if each.rounds > 1]
    assert {each.setting for each in repeated} == {DEFAULT, *(Setting(n, 16 * MIB) for n in (3, 4, 5)[:CONTENDERS])}
    assert all(each.is_narrow for each in repeated)


def test_what_is_sure_is_repeated_with_what_is_not() -> None:
    """Their medians are compared: they are to be of the same minutes."""
    points = [Point(DEFAULT), Point(Setting(1, 16 * MIB)), Point(Setting(2, 16 * MIB))]
    for _ in range(60):
        chosen = next_point(points)
        assert chosen is not None
        wide = 0.5 * (chosen.rounds % 2) if chosen is points[2] else 0.0
        for rates in (chosen.save, chosen.restore):
            rates.ours.append(100.0 * (1 + wide))
    assert [each.rounds for each in points] == [20, 20, 20]
    assert [each.is_narrow for each in points] == [True, True, False]


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


ROUND_S = 1.5


def simulated(
    speeds: Mapping[Setting, float],
    chance: random.Random,
    *,
    noise: float,
    restore_noise: float = 0.15,
    drift: Callable[[float], float] = lambda at_s: 1.0,
) -> Recommendation:
    """What two minutes of rounds advise, in virtual time: of saves at these MiB/s, by the second times `drift`."""
    points, at_s = [Point(each) for each in speeds], 0.0
    while at_s < 120 and (chosen := next_point(points)) is not None:
        now = MIB * drift(at_s)
        chosen.save.ours.append(speeds[chosen.setting] * now * chance.uniform(1 - noise, 1 + noise))
        chosen.restore.ours.append(400 * now * chance.uniform(1 - restore_noise, 1 + restore_noise))
        at_s += ROUND_S
    return recommend(points)


GRID, _ = settings(is_object_store=True, memory_bytes=1280 * MIB)


@pytest.mark.parametrize(
    "drift",
    [
        lambda at_s: 1 if at_s < 60 else 0.5,
        lambda at_s: 1 if at_s < 80 else 0.5,
        lambda at_s: 1 if at_s < 60 else 2,
        lambda at_s: 2 ** (math.sin(at_s / 120 * 2 * math.pi) / 2),
        lambda at_s: 2 ** (-at_s / 120),
    ],
    ids=["halves", "halves later", "doubles", "waves", "falls slowly"],
)
def test_a_storage_that_gets_slower_or_faster_meanwhile_is_no_better_setting(drift: Callable[[float], float]) -> None:
    chance = random.Random(2)
    alike = dict.fromkeys(GRID, 100.0)
    for noise in (0.05, 0.1):
        advice = [simulated(alike, chance, noise=noise, drift=drift) for _ in range(60)]
        assert sum(each.beats_defaults for each in advice) <= 1


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_of_several_that_are_equally_good_each_run_advises_the_same(noise: float) -> None:
    """The one that takes the least memory."""
    chance = random.Random(3)
    good = sorted(
        (each for each in GRID if each.under_way_bytes >= 96 * MIB), key=lambda each: (each.memory_bytes, each)
    )
    assert len(good) > 2 * CONTENDERS
    speeds = {each: 140.0 if each in good else 100.0 for each in GRID}
    advice = [simulated(speeds, chance, noise=noise, restore_noise=noise) for _ in range(150)]
    assert sum(each.setting == good[0] for each in advice) > 145


def test_a_small_gain_of_what_takes_much_memory_is_found() -> None:
    """Though three that take less, and are no faster than the defaults, are nearly as fast as it."""
    chance = random.Random(5)
    fastest = max(GRID, key=lambda each: (each.memory_bytes, each))
    speeds = {each: 118.0 if each == fastest else 100.0 for each in GRID}
    advice = [simulated(speeds, chance, noise=0.02) for _ in range(60)]
    assert {each.setting for each in advice if each.beats_defaults} == {fastest}
    assert sum(each.beats_defaults for each in advice) > 50


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
    for without in ([point(2, 64, [900.0] * 5)], [Point(DEFAULT)], []):
        with pytest.raises(ValueError, match="the defaults were not measured"):
            recommend(without)


@pytest.mark.parametrize("is_object_store", [False, True])
def test_with_less_memory_the_defaults_are_what_a_manager_does_with_that(is_object_store: bool) -> None:
    """Not what happened to be the fastest."""
    fitting, too_large = settings(is_object_store=is_object_store, memory_bytes=50 * MIB)
    usual = fitting[0]
    assert usual.is_default
    assert usual.memory_bytes == 50 * MIB
    assert usual.shard_bytes == default_shard_bytes(is_object_store=is_object_store, memory_budget_bytes=50 * MIB)
    assert str(usual) == "the defaults with 50 MiB"
    assert not any(each.is_default for each in too_large)
    assert manager_call("s3://b/x", usual, has_options=False).endswith(f"memory_budget_bytes={50 * MIB})")
    enough, _ = settings(is_object_store=is_object_store, memory_bytes=1280 * MIB)
    assert enough[0] == default_setting(is_object_store=is_object_store)


@pytest.mark.parametrize("has_options", [False, True])
@pytest.mark.parametrize("chosen", [DEFAULT, Setting(8, 16 * MIB)])
def test_what_to_use_is_python_that_a_manager_takes(chosen: Setting, has_options: bool) -> None:
    call = ast.parse(manager_call("s3://bucket/it's", chosen, has_options=has_options), mode="eval").body
    assert isinstance(call, ast.Call)
    assert [ast.unparse(each) for each in call.args] == ['"s3://bucket/it\'s"', "{'model': model}"]
    names = {each.arg for each in call.keywords}
    expected = set() if chosen.is_default else {"concurrency", "shard_bytes", "memory_budget_bytes"}
    assert names == expected | ({"storage_options"} if has_options else set())
    assert names <= inspect.signature(CheckpointManager).parameters.keys()


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
