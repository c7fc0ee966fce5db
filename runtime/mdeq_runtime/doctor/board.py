"""The device itself: what it is, its processors, memory, disk, power mode and temperature."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mdeq_runtime.doctor.machine import Finding, Machine, mib
from mdeq_runtime.sensors import Sensors

__all__ = ["CHECKS", "available_memory"]

JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}  # by the major version of L4T
LITTLE_MEMORY, LITTLE_DISK = 2**28, 2**30  # bytes
SMALL_BOARD = 9 * 2**30  # bytes of memory; below, building engines may need swap
TOOL_LIMIT_S = 1.0
UNLIMITED = 2**60  # cgroup v1 writes "no limit" as a number near 2**63


def device(machine: Machine) -> Iterator[Finding]:
    name = machine.model or "unknown board"
    where = ", in a container" if machine.container else ""
    yield Finding("device", "device", "ok", f"{name} ({machine.architecture}){where}")


def jetpack(machine: Machine) -> Iterator[Finding]:
    if not machine.jetson:
        yield Finding("device", "JetPack", "note", "not a Jetson")
        return
    text = machine.read("etc/nv_tegra_release")
    found = re.search(r"R(\d+)\D+REVISION:\s*([\d.]+)", text)
    if found is None:
        if machine.container:
            mend = (
                "start it with --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
            )
        else:
            mend = "sudo apt-get install nvidia-l4t-core (or flash the board with JetPack)"
        yield Finding("device", "JetPack", "warn", "/etc/nv_tegra_release says nothing", mend)
        return
    major, version = int(found[1]), f"L4T {found[1]}.{found[2]}"
    if major not in JETPACKS:
        yield Finding("device", "JetPack", "ok", f"{version}, of a JetPack unknown here")
    elif JETPACKS[major] < 5:
        mend = "flash the board with JetPack 6 or later, if there is one for it"
        yield Finding(
            "device", "JetPack", "warn", f"JetPack {JETPACKS[major]} ({version}): too old", mend
        )
    else:
        yield Finding("device", "JetPack", "ok", f"JetPack {JETPACKS[major]} ({version})")


def processors(machine: Machine) -> Iterator[Finding]:
    online = count(machine.read("sys/devices/system/cpu/online"))
    allowed = count(machine.fields("proc/self/status").get("Cpus_allowed_list", "")) or online
    if not allowed:
        yield Finding("device", "processors", "note", "the system does not say how many")
        return
    usable = min(online or allowed, allowed)
    words = [f"{usable} of {online or allowed} cores for this process"]
    share = quota(machine)
    if share is not None and share < usable:
        words.append(f"a cgroup allows the time of {share:g}")
    if machine.environ.get("OMP_NUM_THREADS"):
        words.append(f"OMP_NUM_THREADS={machine.environ['OMP_NUM_THREADS']}")
    if share is not None and share < usable:
        mend = f"edge-mdeq run --threads {max(1, int(share))}, or start the container with --cpus"
        yield Finding("device", "processors", "warn", ", ".join(words), mend)
    else:
        yield Finding("device", "processors", "ok", ", ".join(words))


def memory(machine: Machine) -> Iterator[Finding]:
    free, total = available_memory(machine)
    if free is None:
        yield Finding("device", "memory", "note", "the system does not say how much")
        return
    limits = ", limited by a cgroup" if total < meminfo(machine, "MemTotal") else ""
    found = f"{mib(free)} free of {mib(total)}{limits}"
    if free >= LITTLE_MEMORY:
        yield Finding("device", "memory", "ok", found)
        return
    if limits:
        mend = "raise the limit (docker run --memory, or MemoryMax= of the service)"
    elif machine.jetson:
        mend = "sudo systemctl isolate multi-user.target (this ends the desktop)"
    else:
        mend = "end other programs; edge-mdeq run --memory-limit 256MiB"
    yield Finding("device", "memory", "bad", found, mend)


def swap(machine: Machine) -> Iterator[Finding]:
    total, size = meminfo(machine, "MemTotal"), meminfo(machine, "SwapTotal")
    if not total:
        return
    if size:
        free = meminfo(machine, "SwapFree")
        yield Finding("device", "swap", "ok", f"{mib(free)} free of {mib(size)}")
    elif total > SMALL_BOARD or machine.container:
        yield Finding("device", "swap", "ok", "none")
    else:
        mend = (
            "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && "
            "sudo mkswap /swapfile && sudo swapon /swapfile"
        )
        found = "none; building an engine may run out of memory"
        yield Finding("device", "swap", "warn", found, mend)


def disk(machine: Machine) -> Iterator[Finding]:
    """Where engines and graphs are kept if they cannot lie beside their bundle."""
    home = machine.environ.get("XDG_CACHE_HOME") or f"{machine.environ.get('HOME', '/')}/.cache"
    folder = machine.root / home.lstrip("/")
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    elsewhere = "export XDG_CACHE_HOME=/a/folder/with/room"
    if not os.access(folder, os.W_OK):
        found = f"{home} cannot be written to: engines are built in every run"
        yield Finding("device", "disk", "warn", found, elsewhere)
    elif free < LITTLE_DISK:
        mend = f"sudo apt-get clean, or {elsewhere}"
        yield Finding("device", "disk", "bad", f"{mib(free)} free for {home}", mend)
    else:
        yield Finding("device", "disk", "ok", f"{mib(free)} free for {home}")


def power(machine: Machine) -> Iterator[Finding]:
    """A Jetson's power mode, elsewhere the governor of the processors' clock."""
    if machine.jetson:
        modes = dict(
            re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", machine.read("etc/nvpmodel.conf"))
        )
        said = re.search(r"pmode:0*(\d+)", machine.read("var/lib/nvpmodel/status"))
        number = said[1] if said else ask_nvpmodel(machine)
        if number is None:
            mend = "" if machine.container else "sudo apt-get install nvidia-l4t-nvpmodel"
            yield Finding("device", "power mode", "note", "unknown, nvpmodel does not say", mend)
        else:
            name = modes.get(number, f"number {number}")
            best = next((n for n, title in modes.items() if title.startswith("MAXN")), None)
            mend = f"sudo nvpmodel -m {best}" if best not in (None, number) else ""
            yield Finding("device", "power mode", "warn" if mend else "ok", name, mend)
    clock = "sys/devices/system/cpu/cpu0/cpufreq"
    governor = machine.read(f"{clock}/scaling_governor")
    managed = "pstate" in machine.read(f"{clock}/scaling_driver")  # its "powersave" is not slow
    if governor == "powersave" and not managed:
        mend = (
            "sudo jetson_clocks" if machine.jetson else "sudo cpupower frequency-set -g schedutil"
        )
        yield Finding("device", "clock", "warn", "the governor powersave keeps it low", mend)


def temperature(machine: Machine) -> Iterator[Finding]:
    sensors = Sensors(root=machine.root / "sys")
    heat, watts = sensors.heat(), sensors.watts()
    drawn = "" if watts is None else f", {watts:.1f} W"
    if heat is None:
        yield Finding("device", "temperature", "note", f"no sensor with a limit{drawn}")
        return
    found = f"{heat.zone} {heat.celsius:.0f} °C, slows down near {heat.limit:.0f} °C{drawn}"
    if heat.above < 0:
        yield Finding("device", "temperature", "ok", found)
    else:
        mend = "cool it: a fan, a heat sink, or a lower power mode; edge-mdeq run --target-ms"
        yield Finding("device", "temperature", "warn", found, mend)


CHECKS = (device, jetpack, processors, memory, swap, disk, power, temperature)


def ask_nvpmodel(machine: Machine) -> str | None:
    """The number of the power mode by the tool; None where it does not answer."""
    tool = shutil.which("nvpmodel", path=machine.environ.get("PATH", ""))
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=TOOL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = re.findall(r"^\d+$", done.stdout, re.MULTILINE)
    return str(numbers[-1]) if numbers else None


def available_memory(machine: Machine) -> tuple[int | None, int]:
    """(free, total) bytes for this process: of the machine, or of the tightest cgroup above it."""
    total = meminfo(machine, "MemTotal")
    if not total:
        return None, 0
    free = meminfo(machine, "MemAvailable") or meminfo(machine, "MemFree")
    for folder in cgroups(machine, "memory"):
        for names in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = (machine.read(f"{folder}/{name}") for name in names[:2])
            if limit.isdecimal() and used.isdecimal() and int(limit) < min(UNLIMITED, 2 * total):
                stat = re.search(rf"^{names[2]} (\d+)", machine.read(f"{folder}/memory.stat"), re.M)
                taken = max(0, int(used) - (int(stat[1]) if stat else 0))  # the rest can be dropped
                free, total = min(free, max(0, int(limit) - taken)), min(total, int(limit))
    return free, total


def quota(machine: Machine) -> float | None:
    """How many processors' time the tightest cgroup allows; None: no limit."""
    shares = []
    for folder in cgroups(machine, "cpu"):
        words = machine.read(f"{folder}/cpu.max").split() or [
            machine.read(f"{folder}/cpu.cfs_quota_us"),
            machine.read(f"{folder}/cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            shares.append(int(words[0]) / int(words[1]))
    return min(shares, default=None)


def cgroups(machine: Machine, controller: str) -> Iterator[str]:
    """The folders of this process's cgroup and those above it, of version 2 and of version 1.

    In a container the path may be the host's, which does not exist there: the top is always tried.
    """
    for line in machine.read("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = f"sys/fs/cgroup/{controllers}" if controllers else "sys/fs/cgroup"
        inner = Path(path.lstrip("/"))
        yield from (f"{top}/{folder}" for folder in (inner, *inner.parents))


def meminfo(machine: Machine, name: str) -> int:
    """Bytes from /proc/meminfo; 0 if it does not say."""
    words = machine.fields("proc/meminfo").get(name, "").split()
    return int(words[0]) * 1024 if words else 0


def count(ranges: str) -> int:
    """How many numbers a list such as "0-3,6" holds."""
    pairs = re.findall(r"(\d+)(?:-(\d+))?", ranges)
    return sum(int(last or first) - int(first) + 1 for first, last in pairs)
