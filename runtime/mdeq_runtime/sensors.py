"""Temperatures and power of the machine, as Linux shows them below ``/sys``.

A Jetson has a thermal zone for each part of its chip, and INA3221 monitors on its supply rails.
Where there is neither, there is nothing to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Heat", "Sensors"]

CONSTANT = {"PMIC-Die"}  # a Jetson Nano's or Xavier's says 100 °C whatever happens
PLAUSIBLE = (-55.0, 150.0)  # °C; zones without power read -256 or fail, unused trips are absurd
TOTAL = "VDD_IN"  # the rail before all others, where a module has it


@dataclass(frozen=True)
class Heat:
    """The zone with the least room.

    Attributes:
        zone: its name, such as "tj-thermal".
        celsius: its temperature.
        limit: the temperature to stay below, °C.
    """

    zone: str
    celsius: float
    limit: float

    @property
    def above(self) -> float:
        """Kelvin above the limit; negative below it."""
        return self.celsius - self.limit


class Sensors:
    """Looks for sensors once, and reads them whenever asked.

    Args:
        hot_c: the temperature to stay below, °C. None: for each zone ``margin`` below that at which
            the kernel slows the machine down (the lowest passive trip point); zones without one
            are left alone.
        margin: see there, in kelvin.
        root: the folder that is ``/sys`` on a real machine.
    """

    def __init__(
        self, hot_c: float | None = None, margin: float = 5.0, root: Path = Path("/sys")
    ) -> None:
        self.zones = [
            (name, folder / "temp", limit)
            for folder in sorted(root.glob("class/thermal/thermal_zone*"))
            if (name := read_text(folder / "type")) not in CONSTANT
            and (limit := hot_c if hot_c is not None else passive_trip(folder, margin)) is not None
        ]
        self.rails = list(find_rails(root))

    def heat(self) -> Heat | None:
        """The zone with the least room; None where no zone can be read."""
        found = [
            Heat(name, celsius, limit)
            for name, path, limit in self.zones
            if (celsius := read_celsius(path)) is not None
        ]
        return max(found, key=lambda heat: heat.above, default=None)

    def celsius(self) -> dict[str, float]:
        """The temperature of every zone that can be read, °C, by its name."""
        found = ((name, read_celsius(path)) for name, path, _ in self.zones)
        return {name: celsius for name, celsius in found if celsius is not None}

    def watts(self) -> float | None:
        """Power from the supply: of the rail before all others, else of all; None without rails."""
        found = [
            1e-6 * millivolts * milliamperes
            for volts, amperes in self.rails
            if (millivolts := read_number(volts)) is not None
            and (milliamperes := read_number(amperes)) is not None
        ]
        return sum(found) if found else None


def find_rails(root: Path) -> Iterator[tuple[Path, Path]]:
    """The voltage and current files of the rails that make up the total.

    Of a monitor's channels, 1 to 3 are rails; others are sums that its driver makes.
    """
    rails = [
        (read_text(folder / f"in{channel}_label"), folder / f"in{channel}_input", current)
        for folder in sorted(root.glob("class/hwmon/hwmon*"))
        if read_text(folder / "name") == "ina3221"
        for channel in (1, 2, 3)
        if (current := folder / f"curr{channel}_input").exists()
    ]
    whole = [rail for rail in rails if rail[0] == TOTAL]
    for _, volts, amperes in whole or rails:
        yield volts, amperes


def passive_trip(zone: Path, margin: float) -> float | None:
    """``margin`` below the lowest temperature at which the kernel slows the machine down, °C."""
    trips = [
        celsius
        for kind in zone.glob("trip_point_*_type")
        if read_text(kind) == "passive"
        and (celsius := read_celsius(zone / kind.name.replace("_type", "_temp"))) is not None
    ]
    return min(trips) - margin if trips else None


def read_celsius(path: Path) -> float | None:
    """Millidegrees from a file, in °C; None if there are none, or none that make sense."""
    thousandths = read_number(path)
    if thousandths is None or not PLAUSIBLE[0] < 1e-3 * thousandths < PLAUSIBLE[1]:
        return None
    return 1e-3 * thousandths


def read_number(path: Path) -> int | None:
    try:
        return int(read_text(path))
    except ValueError:
        return None


def read_text(path: Path) -> str:
    """What a file says, "" if it cannot be read: a zone may lose its power at any time."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
