"""An engine fits what it was built for, and each difference is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_mdeq.bundle import Profile, Rung, Step, WeightsFile
from edge_mdeq.errors import DeviceError
from mdeq_runtime.backends.nvidia import CudaDevice
from mdeq_runtime.tensorrt.identity import NAMES, Identity, differences, identify
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.versions import Release

ORIN = Identity(
    "Orin", "8.7", "36.4.3", "12.6", "540.4.0", "10.3.0", "tensorrt-10", "fp16", processors="8"
)


def profile(precision: str = "fp32", flags: tuple[str, ...] = ()) -> Profile:
    rung = Rung((Step(precision, 1),), "graphs/p/solve-k1.onnx")
    return Profile(20, (WeightsFile(precision, "graphs/p/w.bin", 1),), (rung,), flags=flags)


def test_the_same_is_no_difference() -> None:
    assert differences(ORIN, ORIN) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_difference_is_named_with_both_sides(name: str) -> None:
    other = replace(ORIN, **{name: "another"})
    (said,) = differences(ORIN, other)
    assert said == f"{NAMES[name]} {getattr(ORIN, name)}, here another"
    assert other.fingerprint != ORIN.fingerprint


def test_compatible_engines_fit_more() -> None:
    other = replace(ORIN, device="RTX 3060", capability="8.6", l4t=ORIN.l4t)
    anywhere = replace(ORIN, compatibility="ampere_plus")
    assert differences(anywhere, replace(other, processors="28")) == []
    assert differences(anywhere, replace(other, capability="7.5"))
    same = replace(ORIN, compatibility="same_compute_capability")
    assert differences(same, replace(ORIN, device="Orin NX", processors="4")) == []
    assert differences(same, other)


@pytest.mark.parametrize(
    ("here", "fits"), [("10.3.0", True), ("10.13.3", True), ("10.0.1", False), ("11.4.0", False)]
)
def test_version_compatible_engines_fit_later_versions_of_the_major(here: str, fits: bool) -> None:
    built = replace(ORIN, version_compatible=True)
    assert (differences(built, replace(ORIN, tensorrt=here)) == []) is fits


def test_with_flags_for_precision_either_fits() -> None:
    old = replace(ORIN, tensorrt="8.6.1", profile="tensorrt-8")
    assert differences(old, replace(old, precision="fp32")) == []


def test_a_jetson_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    )
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"
    )
    monkeypatch.setattr(
        "mdeq_runtime.tensorrt.identity.find_device",
        lambda: CudaDevice(0, "Orin", (8, 7), 12060, True, 8),
    )
    found = identify(Release((10, 3, 0), False), profile("fp16"), BuildSettings(), tmp_path)
    assert found == ORIN
    assert found.fingerprint.startswith("Orin-tensorrt-10-fp16-")


def test_a_desktop_is_no_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CudaDevice(0, "NVIDIA GeForce RTX 4070", (8, 9), 13000)
    monkeypatch.setattr("mdeq_runtime.tensorrt.identity.find_device", lambda: gpu)
    found = identify(Release((11, 4, 0), False), profile(), BuildSettings(), tmp_path)
    assert (found.l4t, found.driver, found.cuda) == ("", "", "13.0")


def test_ahead_of_time_an_engine_is_for_capabilities() -> None:
    release = Release((1, 7, 1), True)
    built = identify(release, profile(), BuildSettings(capabilities=("SM120", "SM86")))
    assert built.capability == "8.6 12.0"
    for name, fits in (("SM86", True), ("SM120", True), ("SM89", False)):
        here = identify(release, profile(), BuildSettings(capabilities=(name,)))
        assert (differences(built, here) == []) is fits


def test_without_a_gpu_rtx_says_how_to_build_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> CudaDevice:
        raise DeviceError("no NVIDIA driver was found")

    monkeypatch.setattr("mdeq_runtime.tensorrt.identity.find_device", none)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*--compute-capability"):
        identify(Release((1, 7, 1), True), profile(), BuildSettings())
