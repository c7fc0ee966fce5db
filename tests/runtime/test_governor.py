"""Simulated machines, real sensor files: what the governor promises for each of them.

Frames cost ``load * (fixed + each * evaluations)`` milliseconds; time is that of the frames.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edge_mdeq.errors import ConfigError
from mdeq_runtime.governor import PATIENCE, WINDOW, Governor, GovernorSettings
from mdeq_runtime.results import Result
from mdeq_runtime.sensors import Sensors

TARGET = 30.0  # ms
MASK = np.zeros((2, 2), np.uint8)


class Machine:
    """A session that makes as many evaluations as it may, on a clock of its own."""

    def __init__(
        self,
        folder: Path,
        fixed: float,
        each: float,
        counts: Sequence[int] = tuple(range(1, 27)),
        hot_c: float | None = None,
        watts: float | None = None,
        target: float = TARGET,
    ) -> None:
        self.fixed, self.each, self.load = fixed, each, 1.0
        self.noise: Callable[[], float] = lambda: 1.0
        self.wanted = counts[-1]
        self.now = 0.0
        settings = GovernorSettings(target, hot_c, watts)
        self.governor = Governor(settings, counts, Sensors(hot_c, root=folder), lambda: self.now)
        self.counts = counts
        self.limits: list[int] = []  # after each frame

    def ms(self, count: int) -> float:
        return self.load * (self.fixed + self.each * count)

    def frame(self) -> None:
        made = min(self.governor.limit or self.wanted, self.wanted)
        ms = self.ms(made) * self.noise()
        self.now += 1e-3 * ms
        times = {"read": 500.0, "fit": 0.2 * ms, "solve": 0.7 * ms}
        limit = self.governor.advise(Result(MASK, None, made, 0.1, True, True, "", times), 0.1 * ms)
        self.limits.append(limit or self.counts[-1])

    def run(self, frames: int) -> list[int]:
        """The limits after each of so many further frames."""
        for _ in range(frames):
            self.frame()
        return self.limits[-frames:]


def changes(limits: Sequence[int]) -> int:
    return sum(a != b for a, b in pairwise(limits))


LADDERS = (tuple(range(1, 27)), (1, 2, 4, 8, 16), (2, 3, 12), (5,))
LOADS = [
    (fixed, each, counts)
    for counts in LADDERS
    for fixed, each in (
        (0.0, 1.0), (0.0, 2.7), (5.0, 1.0), (5.0, 4.0), (20.0, 1.0), (12.0, 8.0), (0.1, 9.7),
        (1.0, 0.2), (27.0, 0.4), (40.0, 1.0),
    )
]  # fmt: skip


# The frame's time


@pytest.mark.parametrize(("fixed", "each", "counts"), LOADS)
def test_a_constant_load_comes_to_rest_at_the_largest_count_that_meets_the_target(
    tmp_path: Path, fixed: float, each: float, counts: tuple[int, ...]
) -> None:
    machine = Machine(tmp_path, fixed, each, counts)
    machine.run(40 * WINDOW * PATIENCE)
    found = machine.run(5000)
    assert changes(found) == 0
    meeting = [count for count in counts if machine.ms(count) <= 0.95 * TARGET]
    if machine.ms(counts[-1]) <= TARGET:
        assert found[-1] == counts[-1]  # never touched
        assert set(machine.limits) == {counts[-1]}
    else:
        assert found[-1] == max(meeting, default=counts[0])


@pytest.mark.parametrize("seed", range(30))
def test_noise_does_not_keep_the_limit_moving(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    machine = Machine(tmp_path, rng.uniform(0, 20), rng.uniform(0.5, 8))
    machine.noise = lambda: float(rng.uniform(0.96, 1.04) * (3.0 if rng.random() < 0.02 else 1.0))
    machine.run(2000)
    found = machine.run(5000)
    assert changes(found) == 0
    limit = found[-1]
    assert limit == 1 or machine.ms(limit) <= 1.01 * TARGET
    assert limit == 26 or machine.ms(limit + 1) > 0.9 * TARGET


@pytest.mark.parametrize("kink", [2, 4, 7])
def test_counts_that_cost_more_than_in_proportion_come_to_rest_too(
    tmp_path: Path, kink: int
) -> None:
    """As a chain of two graphs does, each with a stem and a readout of its own."""
    machine = Machine(tmp_path, 0.0, 0.0)
    machine.ms = lambda count: 2.0 * count + 8.0 * math.ceil(count / kink)  # type: ignore[method-assign]
    machine.run(1000)
    found = machine.run(5000)
    assert changes(found) == 0
    assert found[-1] == max(n for n in range(1, 27) if machine.ms(n) <= 0.95 * TARGET)


@pytest.mark.parametrize(("fixed", "each", "counts"), LOADS)
def test_two_decisions_bring_a_stream_that_is_too_slow_within_its_target(
    tmp_path: Path, fixed: float, each: float, counts: tuple[int, ...]
) -> None:
    machine = Machine(tmp_path, fixed, each, counts)
    limits = machine.run(2 * WINDOW)
    assert set(limits[: WINDOW - 1]) == {counts[-1]}
    assert machine.ms(limits[-1]) <= TARGET or limits[-1] == counts[0]


def test_what_was_learnt_of_a_load_makes_the_next_decision_the_right_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 10.0, 1.0)
    machine.run(1000)
    machine.load = 1.4
    limit = machine.run(WINDOW)[-1]
    assert machine.ms(limit) <= 0.95 * TARGET < machine.ms(limit + 1)


@pytest.mark.parametrize("heavier", [1.3, 2.0, 5.0])
def test_a_load_that_comes_and_goes_leaves_the_limit_where_it_was(
    tmp_path: Path, heavier: float
) -> None:
    machine = Machine(tmp_path, 4.0, 2.0)
    before = machine.run(1000)[-1]
    for _ in range(3):
        machine.load = heavier
        under_load = machine.run(1000)[-1]
        assert under_load < before
        assert machine.ms(under_load) <= TARGET
        machine.load = 1.0
        assert machine.run(1000)[-1] == before


def test_a_single_slow_frame_changes_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 4.0, 1.0, tuple(range(1, 9)))
    for index in range(200):
        machine.load = 20.0 if index % WINDOW == 3 else 1.0
        machine.frame()
    assert set(machine.limits) == {8}


def test_waiting_for_a_camera_is_not_work(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 1.0, 1.0, (1, 2))  # each result says 500 ms of "read"
    assert set(machine.run(100)) == {2}


def test_frames_that_need_less_than_the_limit_are_judged_by_what_they_made(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, 0.0, 8.0)
    machine.wanted = 5  # converged by then
    assert machine.ms(5) > TARGET
    assert machine.run(1000)[-1] == 3
    machine.wanted = 2
    assert machine.run(2000)[-1] >= 3


def test_nothing_to_limit_is_none(tmp_path: Path) -> None:
    governor = Governor(GovernorSettings(TARGET), (1, 2, 4), Sensors(root=tmp_path))
    fast = Result(MASK, None, 4, 0.1, True, True, "", {"solve": 1.0})
    slow = Result(MASK, None, 4, 0.1, True, True, "", {"solve": 50.0})
    assert [governor.advise(fast) for _ in range(WINDOW)] == [None] * WINDOW
    assert [governor.advise(slow) for _ in range(WINDOW)] == [None] * (WINDOW - 1) + [2]
    assert governor.limit == 2
    assert [governor.advise(fast, write_ms=49.0) for _ in range(WINDOW)][-1] == 1


# Heat and power


def zone(root: Path, index: int, kind: str, celsius: float, **trips: float) -> Path:
    """A thermal zone as the kernel shows it; ``trips`` are °C by type."""
    folder = root / "class" / "thermal" / f"thermal_zone{index}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{kind}\n")
    for number, (name, trip) in enumerate(trips.items()):
        (folder / f"trip_point_{number}_type").write_text(f"{name}\n")
        (folder / f"trip_point_{number}_temp").write_text(f"{1000 * trip:.0f}\n")
    set_celsius(folder, celsius)
    return folder


def set_celsius(folder: Path, celsius: float) -> None:
    (folder / "temp").write_text(f"{1000 * celsius:.0f}\n")


def rail(root: Path, index: int, label: str, volts: float, amperes: float, chip: int = 0) -> Path:
    """A channel of an INA3221 as the kernel shows it."""
    folder = root / "class" / "hwmon" / f"hwmon{chip}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text("ina3221\n")
    (folder / f"in{index}_label").write_text(f"{label}\n")
    (folder / f"in{index}_input").write_text(f"{1000 * volts:.0f}\n")
    (folder / f"curr{index}_input").write_text(f"{1000 * amperes:.0f}\n")
    return folder


def test_overheating_takes_an_evaluation_within_one_window(tmp_path: Path) -> None:
    chip = zone(tmp_path, 0, "tj-thermal", 60.0)
    machine = Machine(tmp_path, 1.0, 1.0, (1, 2, 4, 8), hot_c=85.0)
    assert set(machine.run(5 * WINDOW + 3)) == {8}
    set_celsius(chip, 86.0)
    assert machine.run(WINDOW)[-1] == 4


def test_far_too_hot_takes_all_but_the_least(tmp_path: Path) -> None:
    chip = zone(tmp_path, 0, "tj-thermal", 60.0)
    machine = Machine(tmp_path, 1.0, 1.0, (1, 2, 4, 8), hot_c=85.0)
    set_celsius(chip, 91.0)
    assert machine.run(WINDOW)[-1] == 1


def test_heat_is_given_time_to_follow_before_more_is_taken(tmp_path: Path) -> None:
    zone(tmp_path, 0, "tj-thermal", 86.0)
    machine = Machine(tmp_path, 0.0, 1.0, (1, 2, 4, 8), hot_c=85.0)
    seen: list[tuple[float, int]] = []
    while machine.now < 10.0:
        machine.frame()
        if not seen or seen[-1][1] != machine.limits[-1]:
            seen.append((machine.now, machine.limits[-1]))
    assert [limit for _, limit in seen] == [8, 4, 2, 1]
    times = [at for at, _ in seen[1:]]
    assert all(2.0 <= b - a < 2.2 for a, b in pairwise(times))


def test_it_recovers_once_it_is_cool_and_not_before(tmp_path: Path) -> None:
    chip = zone(tmp_path, 0, "tj-thermal", 86.0)
    machine = Machine(tmp_path, 1.0, 1.0, (1, 2, 4, 8), hot_c=85.0)
    machine.run(WINDOW)
    set_celsius(chip, 81.0)  # below the limit, but not by much
    assert set(machine.run(2000)) == {4}
    set_celsius(chip, 79.0)
    assert machine.run(2 * PATIENCE * WINDOW)[-1] == 8


@pytest.mark.parametrize("each_k", [4.0, 8.0, 20.0])
@pytest.mark.parametrize("tau_s", [5.0, 60.0])
def test_a_machine_that_heats_up_comes_to_rest(tmp_path: Path, each_k: float, tau_s: float) -> None:
    """Each evaluation warms the chip by ``each_k`` in the end, with the time constant ``tau_s``."""
    chip = zone(tmp_path, 0, "tj-thermal", 30.0)
    counts = (1, 2, 3, 4, 6, 8)
    machine = Machine(tmp_path, 150.0, 10.0, counts, hot_c=85.0, target=1000.0)
    celsius = 30.0

    def live(seconds: float) -> list[int]:
        nonlocal celsius
        start, end = len(machine.limits), machine.now + seconds
        while machine.now < end:
            before = machine.now
            limit = machine.run(WINDOW)[-1]
            aim = 30.0 + each_k * limit
            celsius += (aim - celsius) * (1 - math.exp(-(machine.now - before) / tau_s))
            set_celsius(chip, celsius)
        return machine.limits[start:]

    live(30 * tau_s)
    found = live(10 * tau_s)
    assert changes(found) == 0
    assert celsius <= 85.0 or found[-1] == 1
    sustained = [n for n in counts if 30.0 + each_k * n <= 85.0]
    assert found[-1] in counts[max(0, len(sustained) - 3) : len(sustained)] or found[-1] == 1


def test_power_is_kept_below_its_limit(tmp_path: Path) -> None:
    folder = rail(tmp_path, 1, "VDD_IN", 5.0, 1.0)
    machine = Machine(tmp_path, 1.0, 1.0, (1, 2, 4, 8), watts=7.5)

    def live(frames: int) -> list[int]:
        start = len(machine.limits)
        for _ in range(frames // WINDOW):
            amperes = 1.0 + 0.1 * machine.run(WINDOW)[-1]  # 7 W at 4, 9 W at 8
            (folder / "curr1_input").write_text(f"{1000 * amperes:.0f}")
        return machine.limits[start:]

    live(3000)
    assert set(live(3000)) == {4}


# What is read


def test_the_hottest_zone_counts_and_those_that_mean_nothing_do_not(tmp_path: Path) -> None:
    zone(tmp_path, 0, "CPU-therm", 61.5)
    zone(tmp_path, 1, "GPU-therm", 64.0)
    zone(tmp_path, 2, "PMIC-Die", 100.0)  # constant
    zone(tmp_path, 3, "cv0-thermal", -256.0)  # without power
    (zone(tmp_path, 4, "cv1-thermal", 0.0) / "temp").unlink()
    (zone(tmp_path, 5, "odd", 0.0) / "temp").write_text("n/a\n")
    heat = Sensors(85.0, root=tmp_path).heat()
    assert heat is not None
    assert (heat.zone, heat.celsius, heat.limit) == ("GPU-therm", 64.0, 85.0)
    assert heat.above == pytest.approx(-21.0)


def test_without_a_limit_each_zone_has_the_kernels(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", 70.0, active=50.0, passive=99.0, critical=104.5)
    zone(tmp_path, 1, "board", 66.0, passive=70.0)
    zone(tmp_path, 2, "wifi", 90.0)  # nothing known
    heat = Sensors(margin=5.0, root=tmp_path).heat()
    assert heat is not None
    assert (heat.zone, heat.limit, heat.above) == ("board", 65.0, pytest.approx(1.0))


def test_a_zone_that_falls_silent_is_left_out(tmp_path: Path) -> None:
    chip = zone(tmp_path, 0, "tj-thermal", 86.0)
    sensors = Sensors(85.0, root=tmp_path)
    assert sensors.heat() is not None
    (chip / "temp").unlink()
    assert sensors.heat() is None


def test_power_is_that_of_the_first_rail_or_of_all(tmp_path: Path) -> None:
    assert Sensors(root=tmp_path).watts() is None
    rail(tmp_path, 1, "VDD_GPU_SOC", 19.0, 0.4)
    rail(tmp_path, 2, "VIN_SYS_5V0", 5.0, 0.5, chip=1)
    rail(tmp_path, 7, "sum of shunt voltages", 1.0, 1.0)
    assert Sensors(root=tmp_path).watts() == pytest.approx(19.0 * 0.4 + 5.0 * 0.5)
    rail(tmp_path, 3, "VDD_IN", 19.0, 0.9, chip=1)
    assert Sensors(root=tmp_path).watts() == pytest.approx(19.0 * 0.9)


def test_a_machine_without_sensors_is_governed_by_time_alone(tmp_path: Path) -> None:
    sensors = Sensors(85.0, root=tmp_path / "nothing")
    assert (sensors.heat(), sensors.watts()) == (None, None)


# What is said


def test_each_change_is_logged_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chip = zone(tmp_path, 0, "tj-thermal", 60.0)
    machine = Machine(tmp_path, 4.0, 4.0, (1, 2, 4, 8), hot_c=85.0)
    with caplog.at_level(logging.INFO, "mdeq_runtime.governor"):
        machine.run(WINDOW)
        machine.now += 60.0
        set_celsius(chip, 86.25)
        machine.run(WINDOW)
        machine.now += 60.0
        set_celsius(chip, 60.0)
        machine.run(PATIENCE * WINDOW)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "at most 4 evaluations instead of 8: frames take 36.0 ms, the target is 30 ms"),
        (
            "WARNING",
            "at most 2 evaluations instead of 4: tj-thermal is at 86.2 °C, limit 85.0 °C",
        ),
        ("INFO", "at most 4 evaluations instead of 2: frames take 12.0 ms, the target is 30 ms"),
    ]


def test_lines_do_not_come_faster_than_every_five_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, 1.0, 1.0)
    with caplog.at_level(logging.INFO, "mdeq_runtime.governor"):
        for index in range(4000):
            machine.load = 3.0 if index // 100 % 2 else 0.5
            machine.frame()
    lines = [record.getMessage() for record in caplog.records]
    assert changes(machine.limits) > 100
    assert 2 <= len(lines) <= 2 * (machine.now / 5.0 + 1)
    untold = sum(int(text.split("; ")[1].split()[0]) for text in lines if "; " in text)
    assert len(lines) + untold + machine.governor.untold == changes([26, *machine.limits])


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_ms": 0.0},
        {"target_ms": float("nan")},
        {"target_ms": 30.0, "hot_c": 85_000.0},
        {"target_ms": 30.0, "watts": -1.0},
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        GovernorSettings(**wrong)


@pytest.mark.parametrize("counts", [(), (0, 1), (2, 1), (1, 1, 2)])
def test_senseless_counts_are_refused(tmp_path: Path, counts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        Governor(GovernorSettings(30.0), counts, Sensors(root=tmp_path))
