"""Samples on a planted machine: a clock that only work moves, neighbours that come and go, a processor that slows down."""

from collections.abc import Callable

import pytest

from superblock.benchmarks.contention import ALLOWED_SECONDS, ALLOWED_SHARE, Usage, Watch, read_usage
from superblock.benchmarks.timing import LEAST_ROUNDS, Settings, measure, paired_ratios, rotated, spread


class Machine:
    """Two processors, both of which the work uses. While `neighbour(now)` is above 0 others use that share of a processor,
    and work takes ten times as long."""

    def __init__(self, neighbour: Callable[[float], float] = lambda now: 0.0) -> None:
        self.now = self.busy = self.own = self.stolen = 0.0
        self.neighbour = neighbour
        self.drift = 0.0
        self.log: list[str] = []

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            share = self.neighbour(self.now)
            took = seconds * (1 + self.drift * self.now) * (10 if share else 1)
            self.now += took
            self.own += 2 * seconds
            self.busy += 2 * seconds + share * took

        return call

    def usage(self) -> Usage:
        return Usage(self.now, self.busy, self.stolen, self.own)

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def measure(self, calls: dict, settings: Settings) -> dict:
        watch = Watch(2, 2, self.usage)
        return measure(calls, settings, watch, clock=lambda: self.now, pause=self.pause)


def test_a_quiet_machine() -> None:
    machine = Machine()
    timings = machine.measure({"a": machine.work("a", 0.2), "b": machine.work("b", 0.6)}, Settings(repeats=4))
    assert timings["a"].seconds == pytest.approx([0.2] * 4) and timings["b"].seconds == pytest.approx([0.6] * 4)
    assert [t.disturbed + t.kept_disturbed for t in timings.values()] == [0, 0]
    assert "".join(machine.log) == "aabb" + "abbaabba"  # warm-up, then each round begins with another one


def test_short_work_is_repeated_within_a_sample() -> None:
    machine = Machine()
    timings = machine.measure({"a": machine.work("a", 0.01)}, Settings(repeats=3, warm_up=1, sample_seconds=0.095))
    assert timings["a"].calls == 10
    assert timings["a"].seconds == pytest.approx([0.01] * 3)


def test_long_work_is_warm_after_one_call() -> None:
    machine = Machine()
    machine.measure({"a": machine.work("a", 3.0)}, Settings(repeats=1))
    assert machine.log == ["a", "a"]


def test_disturbed_samples_are_repeated() -> None:
    machine = Machine(lambda now: 0.9 if 2.0 < now < 6.0 else 0.0)
    timings = machine.measure({"a": machine.work("a", 0.5), "b": machine.work("b", 0.5)}, Settings(repeats=5))
    for timing in timings.values():
        assert timing.seconds == pytest.approx([0.5] * 5)
        assert timing.kept_disturbed == 0
    assert (
        sum(timing.disturbed for timing in timings.values()) == 1
    )  # one that took five seconds instead of half of one


def test_a_machine_that_is_never_quiet_is_measured_all_the_same_and_says_so() -> None:
    machine = Machine(lambda now: 0.9)
    timings = machine.measure({"a": machine.work("a", 0.2)}, Settings(repeats=3, redo=2.0))
    assert timings["a"].disturbed == 6 and timings["a"].kept_disturbed == 3
    assert timings["a"].seconds == pytest.approx([2.0] * 3)


def test_a_long_case_ends_after_three_rounds_and_repeats_nothing() -> None:
    machine = Machine()
    timings = machine.measure({"a": machine.work("a", 30.0)}, Settings(repeats=7, case_seconds=60.0))
    assert len(timings["a"].seconds) == LEAST_ROUNDS
    machine = Machine(lambda now: 0.9 if now > 50 else 0.0)
    timings = machine.measure({"a": machine.work("a", 30.0)}, Settings(repeats=7, case_seconds=60.0))
    assert timings["a"].disturbed == 0 and timings["a"].kept_disturbed == 2


def test_work_may_time_itself() -> None:
    machine = Machine()
    calls = {"a": lambda: 0.125}
    timings = machine.measure(calls, Settings(repeats=2))
    assert timings["a"].seconds == [0.125, 0.125] and timings["a"].calls == 1


def test_the_ratio_of_neighbours_survives_a_machine_that_slows_down() -> None:
    machine = Machine()
    machine.drift = 0.05
    settings = Settings(repeats=8, case_seconds=1e9)
    timings = machine.measure({"a": machine.work("a", 0.2), "b": machine.work("b", 0.6)}, settings)
    a, b = timings["a"].seconds, timings["b"].seconds
    assert max(a) > 1.2 * min(a)
    assert spread(paired_ratios(b, a))["median"] == pytest.approx(3.0, rel=0.03)


def test_statistics() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "deviation": 0.5}
    assert paired_ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]
    assert [rotated("abc", n) for n in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0], [1.0, 2.0])


def judged(threads: int = 2, processors: int = 2, wall: float = 1.0, **changes: float) -> float:
    readings = iter([Usage(0, 0, 0, 0), Usage(wall, **{"busy": 0.0, "stolen": 0.0, "own": 0.0, **changes})])
    watch = Watch(threads, processors, lambda: next(readings))
    return watch.taken(watch.start())


def test_what_others_took() -> None:
    assert judged(busy=2.0, own=2.0) == 0
    allowed = ALLOWED_SHARE + ALLOWED_SECONDS
    assert judged(busy=2.0 + allowed - 0.001, own=2.0) == 0
    assert judged(busy=2.0 + allowed + 0.001, own=2.0) == pytest.approx(0.001)
    assert judged(busy=1.0, own=1.0, stolen=0.5) == pytest.approx(0.5 - allowed)
    assert judged(busy=1.99, own=2.0) == 0  # the counters tick in hundredths


def test_others_may_use_processors_that_are_not_needed() -> None:
    assert judged(threads=2, processors=8, busy=7.0, own=2.0) == 0
    assert judged(threads=2, processors=8, busy=8.0, own=1.5) > 0


def test_counters_that_stand_still_are_known_for_it() -> None:
    readings = iter([Usage(0, 5, 0, 0), Usage(1, 5, 0, 1.0), Usage(1, 5, 0, 1.0), Usage(2, 9, 0, 2.0)])
    watch = Watch(2, 2, lambda: next(readings))
    assert watch.taken(watch.start()) == 0 and watch.blind
    assert watch.taken(watch.start()) == 0


def test_the_systems_own_counters() -> None:
    before = read_usage()
    while (after := read_usage()).own - before.own < 0.1:
        pass
    assert after.wall > before.wall and after.busy >= before.busy and after.stolen >= before.stolen
