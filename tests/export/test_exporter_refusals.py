"""What an export refuses before anything is traced, and the images it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_data import cut, empty, text, write_camvid, write_image

from edge_mdeq.errors import BundleError, ConfigError, DataError, EdgeMdeqError, WeightsError
from mdeq_export import ExportSettings, export_bundle
from mdeq_export.convergence import Goal
from mdeq_export.images import scene, verification_images


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("traced a model that should have been refused")

    monkeypatch.setattr("mdeq_export.exporter.trace_pieces", refuse)


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": (60, 96)}, ConfigError, "height 60 .* nearest sizes are 48 and 64"),
        ({"size": (64, 100)}, ConfigError, "width 100 .* nearest sizes are 96 and 112"),
        ({"size": (0, 96)}, ConfigError, "height|size"),
        ({"solver": "andersen"}, ConfigError, "did you mean 'anderson'"),
        ({"targets": ("trt-8", "ort-cpu", "RTX")}, ConfigError, "'tensorrt-8'.*'tensorrt-rtx'"),
        ({"solver_settings": {"m": 3}}, ConfigError, "'fixed_point' does not take"),
        ({"solver_settings": {"tau": 0.0}}, ConfigError, "tau"),
        ({"images": Path("/nowhere/at/all")}, DataError, "/nowhere/at/all does not exist"),
        ({"images": Path(__file__)}, DataError, "is a file; give a folder of images"),
        ({"solver": "auot"}, ConfigError, r"unknown solver 'auot' \(did you mean 'auto'"),
        ({"goal": Goal(1e-2)}, ConfigError, "f_tol .* solver 'auto' is chosen by; with 'fixed_p"),
    ],
)
def test_senseless_settings_are_refused(
    segmenter_weights: Path,
    tmp_path: Path,
    settings: dict[str, object],
    error: type[EdgeMdeqError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        export_bundle(
            segmenter_weights,
            tmp_path / "x.mdeq",
            ExportSettings(**settings),  # type: ignore[arg-type]
        )
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_tracing")
def test_one_image_is_too_few_to_choose_a_solver_by(
    segmenter_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "street").mkdir()
    cv2.imwrite(str(tmp_path / "street" / "a.png"), scene(0, 64, 96))
    settings = ExportSettings(solver="auto", images=tmp_path / "street")
    with pytest.raises(DataError, match=r"street holds 1 image; .* at least 2, better 8"):
        export_bundle(segmenter_weights, tmp_path / "x.mdeq", settings)
    assert names(tmp_path) == ["street"]


@pytest.mark.parametrize("iterations", [(), (0,), (2, -1), (257,)])
def test_impossible_iterations_are_refused(iterations: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="iterations"):
        ExportSettings(iterations=iterations)


def truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def pickle(weights: Path) -> None:
    torch.save({"a": torch.zeros(1)}, weights)


def spoil(weights: Path) -> None:
    tensors = load_file(weights)
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_file(tensors, weights)


def widen(weights: Path) -> None:
    card = json.loads(weights.with_suffix(".json").read_text())
    card["model"]["channels"] = [8, 16, 32]
    weights.with_suffix(".json").write_text(json.dumps(card))


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "does not exist"),
        (truncate, "truncated"),
        (pickle, "not a readable safetensors"),
        (spoil, "NaN or infinity"),
        (widen, r"config says .*32"),
    ],
)
def test_bad_weights_are_refused(
    segmenter_weights: Path,
    own_copy: Callable[[Path], Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    weights = own_copy(segmenter_weights)
    damage(weights)
    before = names(tmp_path)
    with pytest.raises(WeightsError, match=message):
        export_bundle(weights, tmp_path / "x.mdeq")
    assert names(tmp_path) == before


@pytest.mark.usefixtures("no_tracing")
def test_what_cannot_be_replaced_is_refused(segmenter_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.mdeq").mkdir()
    (tmp_path / "letters.mdeq" / "dear.txt").write_text("love")
    with pytest.raises(BundleError, match="not a bundle"):
        export_bundle(segmenter_weights, tmp_path / "letters.mdeq", ExportSettings(force=True))
    with pytest.raises(BundleError, match=r"must end in \.mdeq"):
        export_bundle(segmenter_weights, tmp_path / "bundle")
    assert names(tmp_path / "letters.mdeq") == ["dear.txt"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(DataError, match=r"holds no images .* nor do the folders in it"):
        verification_images(tmp_path, 8, 32, 32)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("a.png", text, r"a\.png cannot be decoded"),
        ("a.png", empty, r"a\.png cannot be decoded"),
        ("a.png", cut, r"a\.png is truncated"),
        ("a.jpg", cut, r"a\.jpg is truncated"),
        ("a.jpg", lambda path: (path.unlink(), path.mkdir()), r"cannot read .*a\.jpg: Is a dir"),
    ],
)
def test_an_image_that_cannot_be_read_whole_is_refused_by_name(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    for k in range(2):
        write_image(tmp_path / f"{k}.png", scene(k, 40, 40))
    write_image(tmp_path / name, scene(3, 40, 40))
    spoil(tmp_path / name)
    with pytest.raises(DataError, match=message):
        verification_images(tmp_path, 8, 32, 32)
    assert capfd.readouterr().err == "", "nor does a library speak"


def test_images_may_lie_in_a_folder_per_class(tmp_path: Path) -> None:
    for k, kind in enumerate(("bus", "car", "train")):
        for index in range(4):
            image = np.full((20, 20, 3), 50 * k, np.uint8)
            write_image(tmp_path / kind / f"{index}.png", image)
    images, source = verification_images(tmp_path, 3, 16, 16)
    assert source == tmp_path.name
    assert images[..., 0].mean(axis=(1, 2)).tolist() == [0, 50, 100], "some of each"


def test_of_a_dataset_a_part_must_be_named(tmp_path: Path) -> None:
    """Else masks would be taken for photographs."""
    data = write_camvid(tmp_path / "CamVid")
    with pytest.raises(DataError, match=r"CamVid holds no images itself; name .*CamVid/val or"):
        verification_images(data, 8, 32, 32)
    assert verification_images(data / "val", 8, 32, 32)[1] == "val"


def test_images_are_read_as_rgb_and_spread_over_the_folder(tmp_path: Path) -> None:
    for index in range(9):
        image = np.zeros((20, 20, 3), np.uint8)
        image[..., 2] = 10 * index  # red, in OpenCV's order
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    images, source = verification_images(tmp_path, 3, 16, 16)
    assert source == tmp_path.name
    assert images.shape == (3, 16, 16, 3)
    assert images[..., 0].mean(axis=(1, 2)).tolist() == [0, 40, 80]
    assert not images[..., 1:].any()


def test_generated_scenes_are_reproducible_and_differ() -> None:
    images, source = verification_images(None, 3, 32, 48)
    again, _ = verification_images(None, 3, 32, 48)
    assert source == "test://"
    assert np.array_equal(images, again)
    assert len({image.tobytes() for image in images}) == 3
    assert images.std() > 10
