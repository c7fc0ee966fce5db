"""A bundle is opened if its files are what its manifest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import CONTENT, GRAPH, WEIGHTS, manifest_of, producer

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import BundleError


def test_a_whole_bundle_opens_and_verifies(bundle: Path) -> None:
    opened = open_bundle(bundle, verify=True)
    assert opened == Bundle(bundle, manifest_of(CONTENT))


def test_a_checked_file_is_given_as_a_path(bundle: Path) -> None:
    assert open_bundle(bundle).file(GRAPH).read_bytes() == CONTENT[GRAPH]


def test_a_bundle_opens_through_a_link_to_its_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    open_bundle(tmp_path / "link", verify=True)


def test_an_unknown_profile_names_the_known_ones(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no graphs for 'tensorrt', only for ort-cpu"):
        open_bundle(bundle).profile("tensorrt")


def change_a_byte(bundle: Path) -> None:
    (bundle / GRAPH).write_bytes(producer("grapf"))


def cut_off(bundle: Path) -> None:
    (bundle / WEIGHTS).write_bytes(CONTENT[WEIGHTS][:-1])


def remove(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()


def make_a_folder(bundle: Path) -> None:
    (bundle / GRAPH).unlink()
    (bundle / GRAPH).mkdir()


def link_out(bundle: Path) -> None:
    """To the very same bytes, so that only the link is wrong."""
    outside = bundle.parent / "outside.onnx"
    (bundle / GRAPH).rename(outside)
    (bundle / GRAPH).symlink_to(outside)


def link_the_folder_out(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    (bundle / "graphs").rename(outside)
    (bundle / "graphs").symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_a_byte, "does not have the SHA-256 that the manifest gives"),
        (cut_off, "has 699 bytes, the manifest says 700"),
        (remove, "incomplete: .*fp32.data is missing"),
        (make_a_folder, "incomplete: .*solve-k4.onnx is missing"),
        (link_out, "leads out of the bundle"),
        (link_the_folder_out, "leads out of the bundle"),
    ],
)
def test_a_damaged_bundle_is_refused(
    bundle: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle, verify=True)


def test_what_the_manifest_does_not_name_is_not_checked(bundle: Path) -> None:
    """Engines and measurements of this machine lie beside."""
    (bundle / "measurements.json").write_text("{}")
    open_bundle(bundle, verify=True)


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.mdeq").write_bytes(b"")
    with pytest.raises(BundleError, match=r"tiny\.mdeq is a file, not a folder"):
        open_bundle(tmp_path / "tiny.mdeq")


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tiny\.mdeq does not exist"):
        open_bundle(tmp_path / "tiny.mdeq")


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: manifest\.json: No such file"):
        open_bundle(tmp_path)


def test_an_enormous_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(BundleError, match=r"larger than .* bytes; not a manifest"):
        open_bundle(tmp_path)
