"""What the doctor finds on machines that are folders, and on the real one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_mdeq.errors import DeviceError
from mdeq_runtime import doctor
from mdeq_runtime.backends.nvidia import CudaDevice
from mdeq_runtime.doctor import Finding, Machine, examine, run_checks
from mdeq_runtime.doctor.board import available_memory, count, quota

pytestmark = pytest.mark.clock

ORIN = CudaDevice(0, "Orin", (8, 7), 12060)
BASE = ("numpy", "numpy.libs", "msgspec", "edge_mdeq", "mdeq_runtime")  # what is always installed

CV2 = """
__version__ = "4.8.0"
def getBuildInformation():
    return '''
  GUI:                           {gui}
  Video I/O:
    FFMPEG:                      {ffmpeg}
    GStreamer:                   {gstreamer}
    v4l/v4l2:                    YES (linux/videodev2.h)
'''
"""
ORT = """
__version__ = "1.23.0"
def get_available_providers():
    return ["CPUExecutionProvider"]
"""
MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >"
MEMINFO = "MemTotal: {total} kB\nMemAvailable: {free} kB\nSwapTotal: {swap} kB\nSwapFree: {swap} kB"


def lay(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def site(folder: Path, **modules: str) -> list[str]:
    """Python's path where edge-mdeq is installed, and of other packages only ``modules``."""
    folder.mkdir()
    for name in BASE:
        spec = importlib.util.find_spec(name) if "." not in name else None
        found = Path(spec.origin).parent if spec and spec.origin else None
        if found is None:  # libraries beside their package
            numpy = importlib.util.find_spec("numpy")
            assert numpy is not None
            assert numpy.origin is not None
            found = Path(numpy.origin).parents[1] / name
        if found.exists():
            (folder / name).symlink_to(found)
    lay(folder, {f"{name}/__init__.py": text for name, text in modules.items()})
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    return [str(folder), *standard, *(f"{path}/lib-dynload" for path in standard)]


def absent(index: int | None = None) -> Iterator[str]:
    raise DeviceError("no NVIDIA driver was found (libcuda.so.1: cannot open); install it")


def tensorrt_10(major: int) -> str:
    if major != 10:
        raise DeviceError("no such library")
    return "10.3.0"


def machine(root: Path, path: list[str], **settings: object) -> Machine:
    settings = {"gpu": absent, "tensorrt": absent, "architecture": "aarch64"} | settings
    environ = settings.pop("environ", {"HOME": "/home/pi", "USER": "pi"})
    return Machine(root, environ=environ, path=path, **settings)  # type: ignore[arg-type]


def by_name(found: doctor.Report) -> dict[str, Finding]:
    assert len({finding.name for finding in found.findings}) == len(found.findings)
    assert not [f for f in found.findings if "could not be examined" in f.found]
    return {finding.name: finding for finding in found.findings}


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """An Orin Nano with JetPack 6 (L4T 36.4), hot, in its 15 W mode, with a USB camera."""
    zone, rail = "sys/class/thermal/thermal_zone0", "sys/class/hwmon/hwmon3"
    return lay(
        tmp_path / "orin",
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768\0nvidia,tegra234\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081",
            "etc/nvpmodel.conf": MODES,
            "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet",
            "etc/group": "root:x:0:\nvideo:x:44:gdm\n",
            "proc/meminfo": MEMINFO.format(total=7802000, free=5000000, swap=0),
            "proc/self/status": "Cpus_allowed_list:\t0-3\nGroups:\t1000 27\n",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/devices/system/cpu/online": "0-5\n",
            f"{zone}/type": "tj-thermal",
            f"{zone}/temp": "97000",
            f"{zone}/trip_point_0_type": "passive",
            f"{zone}/trip_point_0_temp": "99000",
            f"{rail}/name": "ina3221",
            f"{rail}/in1_label": "VDD_IN",
            f"{rail}/in1_input": "5000",
            f"{rail}/curr1_input": "2000",
            "usr/local/cuda/version.json": '{"cuda": {"version": "12.6.68"}}',
            "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
            "dev/video0": "",
            "dev/video1": "",
            "dev/video-dec0": "",
            "sys/class/video4linux/video0/name": "HD Pro Webcam C920\n",
            "usr/lib/aarch64-linux-gnu/gstreamer-1.0/libgstnvarguscamerasrc.so": "",
            "home/pi/.cache/x": "",
        },
    )


def test_a_jetson_orin_with_pips_opencv(orin: Path, tmp_path: Path) -> None:
    pip = CV2.format(gui="QT5", ffmpeg="YES", gstreamer="NO")
    path = site(tmp_path / "site", cv2=pip, onnxruntime=ORT)
    jetson = machine(
        orin, path, gpu=lambda: ORIN, tensorrt=tensorrt_10, access=lambda p: p.name != "video1"
    )
    report = examine(jetson)
    found = by_name(report)
    assert found["device"].found == "NVIDIA Jetson Orin Nano Developer Kit (aarch64)"
    assert found["JetPack"].found == "JetPack 6 (L4T 36.4.3)"
    assert found["processors"].found == "4 of 6 cores for this process"
    assert found["memory"].found == "4.8 GiB free of 7.4 GiB"
    assert (found["swap"].status, "mkswap" in found["swap"].mend) == ("warn", True)
    assert (found["power mode"].found, found["power mode"].mend) == ("15W", "sudo nvpmodel -m 2")
    assert found["temperature"].status == "warn"  # 97 °C, 5 below 99
    assert "tj-thermal 97 °C" in found["temperature"].found
    assert "10.0 W" in found["temperature"].found
    assert found["driver"].found == "Orin, compute capability 8.7, driver for CUDA 12.6"
    assert found["CUDA"].found == "12.6.68 in /usr/local/cuda"
    assert found["TensorRT"].found == "library 10.3.0"
    assert "--system-site-packages" in found["TensorRT for Python"].mend
    assert "edge-mdeq[tensorrt]" in found["pycuda"].mend
    assert found["ONNX Runtime"].status == "warn"
    assert "leaves the GPU unused" in found["ONNX Runtime"].found
    assert found["OpenCV: GStreamer"].status == "warn"
    assert "--system-site-packages" in found["OpenCV: GStreamer"].mend
    assert found["/dev/video0"] == Finding("media", "/dev/video0", "ok", "HD Pro Webcam C920")
    assert found["/dev/video1"].status == "bad"
    assert "sudo usermod -aG video $USER" in found["/dev/video1"].mend
    assert "/dev/video-dec0" not in found
    assert found["CSI cameras"].mend == "sudo systemctl restart nvargus-daemon"
    assert found["display"].status == "note"
    assert report.devices["cpu"] is None
    assert "CUDAExecutionProvider" in (report.devices["cuda"] or "")
    assert report.runs


def test_a_jetson_where_all_is_well(orin: Path, tmp_path: Path) -> None:
    jetpacks = CV2.format(gui="\n    GTK+:  YES (ver 3.24)", ffmpeg="YES", gstreamer="YES (1.20.3)")
    path = site(
        tmp_path / "site",
        cv2=jetpacks,
        onnxruntime=ORT.replace('["', '["CUDAExecutionProvider", "'),
        tensorrt="__version__ = '10.3.0'",
        pycuda="VERSION_TEXT = '2026.1'",
    )
    lay(tmp_path, {"site/pycuda/driver.py": ""})
    lay(
        orin,
        {
            "var/lib/nvpmodel/status": "pmode:0002",
            "sys/class/thermal/thermal_zone0/temp": "50000",
            "proc/meminfo": MEMINFO.format(total=7802000, free=5000000, swap=4000000),
            "tmp/argus_socket": "",
            "tmp/.X11-unix/X0": "",
        },
    )
    environ = {"HOME": "/home/pi", "DISPLAY": ":0"}
    jetson = machine(
        orin, path, gpu=lambda: ORIN, tensorrt=tensorrt_10, access=lambda p: True, environ=environ
    )
    report = examine(jetson)
    unwell = [f for f in report.findings if f.status in ("warn", "bad")]
    assert unwell == []
    found = by_name(report)
    assert found["pycuda"].found == "2026.1"
    assert found["OpenCV: windows"].status == "ok"  # as OpenCV before 4.5 says it


def test_a_small_arm_board(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "pi",
        {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/meminfo": MEMINFO.format(total=4000000, free=200000, swap=200000),
            "proc/self/status": "Cpus_allowed_list:\t0-3\nGroups:\t1000\n",
            "sys/devices/system/cpu/online": "0-3",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "cpufreq-dt",
            "etc/group": "video:x:44:pi\n",
            "dev/video0": "",
        },
    )
    headless = CV2.format(gui="NONE", ffmpeg="YES", gstreamer="NO")
    path = site(tmp_path / "site", cv2=headless, onnxruntime=ORT)
    report = examine(machine(root, path, access=lambda p: False))
    found = by_name(report)
    assert found["JetPack"].found == "not a Jetson"
    assert found["memory"].status == "bad"
    assert "powersave" in found["clock"].found
    assert "CSI cameras" not in found
    assert "power mode" not in found
    assert {found[name].status for name in ("driver", "CUDA", "TensorRT", "pycuda")} == {"note"}
    assert not any(found[name].mend for name in ("driver", "CUDA", "TensorRT", "pycuda"))
    assert "log out and in again" in found["/dev/video0"].mend
    assert "opencv-python-headless" in found["OpenCV: windows"].mend
    assert found["OpenCV: GStreamer"].status == "note"
    assert report.devices == {"cpu": None, "cuda": "no NVIDIA GPU", "tensorrt": "no NVIDIA GPU"}


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A container on a GPU server, started without --gpus, with limits by version 1 and 2."""
    return lay(
        tmp_path / "container",
        {
            ".dockerenv": "",
            "proc/meminfo": MEMINFO.format(total=32000000, free=30000000, swap=0),
            "proc/self/status": "Cpus_allowed_list:\t0-15\n",
            "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n",
            "sys/devices/system/cpu/online": "0-15",
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        },
    )


V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(512 * 2**20),
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(500 * 2**20),
    "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {100 * 2**20}\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
}
V2 = {
    "sys/fs/cgroup/memory.max": str(512 * 2**20),
    "sys/fs/cgroup/memory.current": str(500 * 2**20),
    "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {100 * 2**20}\n",
    "sys/fs/cgroup/cpu.max": "150000 100000",
}


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_a_container(container: Path, tmp_path: Path, files: dict[str, str]) -> None:
    lay(container, files)
    report = examine(machine(container, site(tmp_path / "site"), environ={"DISPLAY": ":7"}))
    found = by_name(report)
    assert found["device"].found == "unknown board (aarch64), in a container"
    assert found["processors"].status == "warn"
    assert "the time of 1.5" in found["processors"].found
    assert found["memory"].found == "112 MiB free of 512 MiB, limited by a cgroup"
    assert (found["memory"].status, "--memory" in found["memory"].mend) == ("bad", True)
    assert found["driver"].status == "bad"
    assert found["driver"].mend == "start the container with --gpus all"
    assert found["cameras"].mend == "start the container with --device /dev/video0"
    assert found["ONNX Runtime"].status == "bad"
    assert found["display"].status == "warn"  # DISPLAY came in, the socket did not
    assert not report.runs


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_unlimited_cgroups_change_nothing(container: Path, files: dict[str, str]) -> None:
    nothing = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.max": "max"}
    nothing |= {"cpu.cfs_quota_us": "-1", "cpu.max": "max 100000"}
    lay(container, {k: nothing.get(Path(k).name, v) for k, v in files.items()})
    assert available_memory(Machine(container)) == (30000000 * 1024, 32000000 * 1024)
    assert quota(Machine(container)) is None


def test_lists_of_processors() -> None:
    assert [count(text) for text in ("", "0", "0-3", "0-3,6,8-9")] == [0, 1, 4, 7]


def test_a_system_where_nothing_exists(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    report = examine(machine(tmp_path / "root", site(tmp_path / "site"), environ={}))
    found = by_name(report)
    assert found["memory"].status == "note"
    assert "edge-mdeq[onnxruntime]" in found["ONNX Runtime"].mend
    assert "edge-mdeq[camera]" in found["OpenCV"].mend
    assert "edge-mdeq[camera]" in found["extra camera"].mend
    assert report.devices["cpu"] == "ONNX Runtime is not installed"
    assert not report.runs


def test_files_of_nonsense_are_findings_at_most(orin: Path, tmp_path: Path) -> None:
    for path in [p for p in orin.rglob("*") if p.is_file()]:
        path.write_bytes(b"\xff\xfe: nonsense\n:::\n[")
    report = examine(machine(orin, site(tmp_path / "site"), access=lambda p: False))
    assert {finding.name for finding in report.findings} > {"device", "driver", "OpenCV", "cuda"}


BREAKS = {
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": ("SIGSEGV", "edge-mdeq[camera]"),
    "raise SystemExit(3)": ("status 3", "edge-mdeq[camera]"),
    "raise ImportError('numpy.core.multiarray failed to import')": ("numpy", "numpy<2"),
    "raise ImportError('libGL.so.1: cannot open shared object file')": ("libGL", "libgl1"),
}


@pytest.mark.parametrize("code", BREAKS)
def test_a_library_that_breaks_its_process(tmp_path: Path, code: str) -> None:
    (tmp_path / "root").mkdir()
    path = site(tmp_path / "site", cv2=code)
    found = by_name(examine(machine(tmp_path / "root", path)))["OpenCV"]
    said, mend = BREAKS[code]
    assert found.status == "bad"
    assert said in found.found
    assert mend in found.mend


def test_a_check_that_raises_is_a_finding_and_keeps_what_it_found() -> None:
    def check(machine: Machine) -> Iterator[Finding]:
        yield Finding("s", "first", "ok", "yes")
        raise RuntimeError("boom")

    first, second = run_checks(Machine(), "s", [check])
    assert first.name == "first"
    assert (second.name, second.status) == ("check", "warn")
    assert "RuntimeError: boom" in second.found


def test_nvpmodel_is_asked_where_its_file_is_silent(orin: Path, tmp_path: Path) -> None:
    (orin / "var/lib/nvpmodel/status").unlink()
    tool = tmp_path / "bin/nvpmodel"
    lay(tmp_path, {"bin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n"})
    tool.chmod(0o755)
    environ = {"PATH": str(tool.parent), "HOME": "/home/pi"}

    def mode() -> Finding:
        jetson = machine(orin, [], environ=environ)
        return next(f for f in run_checks(jetson, "device", [doctor.board.power]))

    assert mode().found == "MAXN_SUPER"
    tool.write_text("#!/bin/sh\nexec sleep 30\n")
    started = time.monotonic()
    assert mode().status == "note"
    assert time.monotonic() - started < 5


# The command, on the real machine

BUNDLE = Path(__file__).parents[2] / "samples/bundles/camvid-nano.mdeq"
COMMAND = [sys.executable, "-m", "edge_mdeq.cli", "doctor"]


def call(*arguments: str | Path, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **settings)  # type: ignore[call-overload, no-any-return]


def test_on_this_machine() -> None:
    before = sorted(BUNDLE.rglob("*"))
    done = call(BUNDLE, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["runs"] is True
    assert report["devices"]["cpu"] is None
    assert report["profiles"]["ort-cpu"] is None
    free = {f["name"]: f for f in report["findings"]}["memory"]["found"]
    assert "free of" in free
    assert sorted(BUNDLE.rglob("*")) == before  # it leaves nothing behind
    done = call(BUNDLE)
    assert done.returncode == 0
    last = done.stdout.splitlines()[-1]
    assert last == f"next: edge-mdeq run {BUNDLE} VIDEO annotated.mp4"


def test_a_damaged_bundle_does_not_run(own_copy: Callable[[Path], Path]) -> None:
    bundle = own_copy(BUNDLE)
    next(bundle.rglob("*.onnx")).write_bytes(b"")
    done = call(bundle, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report["profiles"] == {}
    assert "has 0 bytes" in report["findings"][-1]["found"]
    assert call(bundle.parent / "no.mdeq").returncode == 1


def test_a_profile_without_its_software_says_why(own_copy: Callable[[Path], Path]) -> None:
    bundle = own_copy(BUNDLE)
    manifest = json.loads((bundle / "manifest.json").read_text())
    profiles = manifest["profiles"]
    profiles["tensorrt-10"] = profiles["tensorrt-rtx"] = profiles["ort-cpu"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    found = json.loads(call(bundle, "--json").stdout)["profiles"]
    assert found["ort-cpu"] is None
    if not os.path.exists("/dev/nvidia0"):
        for profile in ("tensorrt-10", "tensorrt-rtx"):
            assert "NVIDIA" in found[profile]


def test_it_imports_no_library_and_is_quick() -> None:
    code = (
        "import sys; from mdeq_runtime.doctor import examine; examine();"
        "sys.exit(bool({'torch', 'cv2', 'onnxruntime', 'tensorrt', 'pycuda'} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(8):  # the least of so many, for a busy machine
        started = time.monotonic()
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
        seconds.append(time.monotonic() - started)
        if seconds[-1] < 2.0:
            break
    assert min(seconds) < 2.0
