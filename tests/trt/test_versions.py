"""Each version is recognised, also without importing it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from doubles import VERSIONS, TensorRT

from edge_mdeq.errors import ConfigError, DeviceError, MissingExtraError
from mdeq_runtime.tensorrt import versions
from mdeq_runtime.tensorrt.versions import Release, find_flavour, find_release, flavour_of


@pytest.mark.parametrize(
    ("version", "profile", "flag"),
    [
        ("8.6.1", "tensorrt-8", "EXPLICIT_BATCH"),
        ("10.3.0", "tensorrt-10", "STRONGLY_TYPED"),
        ("10.16.1.11", "tensorrt-10", "STRONGLY_TYPED"),
        ("11.4.0.106", "tensorrt-11", "STRONGLY_TYPED"),
        ("rtx_1.7.1.116", "tensorrt-rtx", None),
    ],
)
def test_a_version_has_its_profile_and_its_kind_of_network(
    version: str, profile: str, flag: str | None
) -> None:
    double = TensorRT(version)
    flavour = flavour_of(double.module, double.rtx)
    assert flavour.profile == profile
    flags = double.module.NetworkDefinitionCreationFlag
    assert flavour.network_flags() == (0 if flag is None else 1 << int(getattr(flags, flag)))


def test_every_version_that_is_enumerated_is_known() -> None:
    for version in VERSIONS:
        double = TensorRT(version)
        assert double.version.startswith(flavour_of(double.module, double.rtx).version)


@pytest.mark.parametrize("numbers", [(8, 5, 2), (7, 1, 3), (9, 0, 1), (12, 0, 0), ()])
def test_others_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match="none that edge-mdeq knows"):
        Release(numbers, False)


def test_compute_capabilities_are_for_rtx_and_known_ones() -> None:
    rtx = flavour_of(TensorRT("rtx_1.7.1.116").module, True)
    assert rtx.capabilities()[:2] == ("SM75", "SM80")
    assert str(rtx.capability("SM86")) == "ComputeCapability.SM86"
    with pytest.raises(ConfigError, match=r"no 'SM87'.*Orin"):
        rtx.capability("SM87")
    with pytest.raises(ConfigError, match="GPU at hand"):
        flavour_of(TensorRT("10.3.0").module).capability("SM86")


def test_hardware_compatibility_is_what_the_version_has() -> None:
    old, new = (flavour_of(TensorRT(v).module) for v in ("10.3.0", "11.4.0.106"))
    assert str(new.compatibility("same_compute_capability")).endswith("SAME_COMPUTE_CAPABILITY")
    with pytest.raises(ConfigError, match="no hardware compatibility 'same_compute_capability'"):
        old.compatibility("same_compute_capability")


def test_a_version_is_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libnvinfer.so.10')")
    (tmp_path / "tensorrt-10.3.0.dist-info").mkdir()
    (tmp_path / "tensorrt_rtx_cu13-1.7.1.116.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_release(False) == Release((10, 3, 0), False)
    with pytest.raises(DeviceError, match=r"cannot be imported \(libnvinfer.so.10\)"):
        find_flavour(False)
    assert "tensorrt" not in sys.modules


def test_what_is_not_installed_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda names: ())
    with pytest.raises(MissingExtraError, match="JetPack"):
        find_release()
    with pytest.raises(MissingExtraError, match=r"edge-mdeq\[tensorrt-rtx\]"):
        find_flavour(True)
