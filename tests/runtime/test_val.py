"""A bundle's score on labelled data: what training scores for the same weights, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_data import (
    PER_CLASS,
    SCENE,
    VAL,
    VOID,
    cut,
    draw_photograph,
    write_camvid,
    write_cifar,
    write_cityscapes,
    write_folder,
)

import edge_mdeq
from edge_mdeq.datasets import Cifar10, ImageFolder, SegmentationFolder
from edge_mdeq.errors import BundleError, ConfigError, DataError, SessionError
from edge_mdeq.fitting import FitMode
from mdeq_runtime.val import RungScore, Tally, ValReport, ValSettings, score, validate

LABELS = ("ant", "bee", "cat", "dog", "eel")  # the classifier's
SEGMENTER_SIZE, CLASSIFIER_SIZE = (64, 96), (32, 32)
Spoil = Callable[[Path], None]
Copy = Callable[[Path], Path]


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    return write_camvid(tmp_path / "camvid")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder", LABELS)


def shares(found: RungScore) -> list[float]:
    """Per class, NaN where there is none."""
    return [np.nan if share is None else share for share in found.per_class]


def by_start(report: ValReport) -> dict[tuple[str, int], RungScore]:
    return {(found.start, found.evaluations): found for found in report.scores}


# Segmentation


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_a_mask_s_score_is_what_training_finds_for_the_same_weights(
    segmenter_weights: Path, segmenter_bundle: Path, camvid: Path, fit: FitMode
) -> None:
    from edge_mdeq.training.evaluate import evaluate
    from edge_mdeq.weights import load_weights

    model, card = load_weights(segmenter_weights)
    data = SegmentationFolder(camvid, "val", 4, (VOID,), SEGMENTER_SIZE, fit=fit)
    report = edge_mdeq.val(segmenter_bundle, camvid, ignore=[VOID], warm=True, fit=fit)
    found = by_start(report)
    assert list(found) == [(start, count) for start in ("cold", "warm") for count in (1, 2, 4)]
    for (start, count), ours in found.items():
        theirs = evaluate(model, data, card.input, count, warm=start == "warm")
        assert ours.value == pytest.approx(theirs.miou, abs=1e-3)
        np.testing.assert_allclose(shares(ours), theirs.iou, atol=2e-3)
        assert ours.residual == pytest.approx(theirs.residual, rel=1e-3)
        assert ours.balanced is None
    residuals = {found[start, 2].residual for start in ("cold", "warm")}
    assert len(residuals) == 2  # or warm starts would not have been tried
    assert report.metric == "miou"
    assert (report.images, report.labels) == (VAL, ("road", "sky", "tree", "car"))


def test_the_counts_are_the_labelled_pixels(segmenter_bundle: Path, camvid: Path) -> None:
    report = validate(segmenter_bundle, camvid, ValSettings(ignore=(VOID,), iterations=(1,)))
    masks = SegmentationFolder(camvid, "val", 4, (VOID,), SEGMENTER_SIZE)
    truth = np.stack([masks[k][1] for k in range(VAL)])
    assert list(report.counts) == [(truth == k).sum() for k in range(4)]


def test_a_count_without_a_rung_is_a_chain_of_rungs(
    segmenter_weights: Path, segmenter_bundle: Path, camvid: Path
) -> None:
    from edge_mdeq.training.evaluate import evaluate
    from edge_mdeq.weights import load_weights

    model, card = load_weights(segmenter_weights)
    data = SegmentationFolder(camvid, "val", 4, (VOID,), SEGMENTER_SIZE)
    settings = ValSettings(ignore=(VOID,), iterations=(3, 1))
    one, three = validate(segmenter_bundle, camvid, settings).scores
    assert (one.evaluations, one.steps) == (1, "1 fp32")
    assert (three.evaluations, three.steps) == (3, "2 fp32 + 1 fp32")
    theirs = evaluate(model, data, card.input, 3)
    assert three.value == pytest.approx(theirs.miou, abs=1e-3)
    assert three.residual == pytest.approx(theirs.residual, rel=1e-3)


def test_a_limit_takes_the_first_frames_and_progress_counts_every_rung_s(
    segmenter_bundle: Path, camvid: Path, tmp_path: Path
) -> None:
    settings, seen = ValSettings(ignore=(VOID,), limit=1, iterations=(1, 2)), []
    report = validate(segmenter_bundle, camvid, settings, lambda *k: seen.append(k))
    assert report.images == 1
    assert seen == [(1, 2), (2, 2)]
    for kind in ("val", "valannot"):
        (camvid / kind / "001.png").unlink()
    alone = validate(segmenter_bundle, camvid, ValSettings(ignore=(VOID,), iterations=(1, 2)))
    assert report.scores == alone.scores


def test_the_layout_of_cityscapes_and_another_split(segmenter_bundle: Path, tmp_path: Path) -> None:
    ours = validate(
        segmenter_bundle,
        write_camvid(tmp_path / "a"),
        ValSettings(split="train", ignore=(VOID,), iterations=(2,)),
    )
    theirs = validate(
        segmenter_bundle,
        write_cityscapes(tmp_path / "b"),
        ValSettings(layout="cityscapes", split="train", ignore=(VOID,), iterations=(2,)),
    )
    assert ours.scores[0].value == theirs.scores[0].value
    assert ours.counts == theirs.counts


def change(bundle: Path, edit: Callable[[dict[str, object]], object]) -> Path:
    """Edit a manifest, which is in no hash."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    return bundle


def test_a_bundle_that_names_no_classes_scores_the_same(
    segmenter_bundle: Path, own_copy: Copy, camvid: Path
) -> None:
    settings = ValSettings(ignore=(VOID,), iterations=(2,))
    named = validate(segmenter_bundle, camvid, settings).scores[0]
    nameless = change(own_copy(segmenter_bundle), lambda m: m.update(labels=[], palette=[]))
    report = validate(nameless, camvid, settings)
    assert report.scores[0].value == named.value
    assert report.scores[0].per_class[:4] == named.per_class
    assert report.labels[3] == "class 3"


def test_the_model_card_s_figure_stands_beside_that_of_the_whole_split(
    segmenter_bundle: Path, own_copy: Copy, camvid: Path
) -> None:
    bundle = change(own_copy(segmenter_bundle), lambda m: m.update(metrics={"miou_cold_2": 0.5}))

    def cards(**settings: object) -> list[float | None]:
        report = edge_mdeq.val(bundle, camvid, ignore=[VOID], **settings)
        return [found.card for found in report.scores]

    assert cards() == [None, 0.5, None]
    assert cards(limit=1) == cards(split="train") == [None] * 3


def test_a_solve_that_ends_in_nan_has_no_residual(segmenter_bundle: Path) -> None:
    """JSON knows no NaN."""
    from edge_mdeq.bundle import open_bundle

    manifest = open_bundle(segmenter_bundle).manifest
    tally = Tally("cold", 4, None)
    tally.confusion[0, 0] = 1
    tally.residuals += [0.1, float("nan")]
    chain = manifest.profiles["ort-cpu"].rungs[:1]
    assert score(tally, chain, manifest, ValSettings()).residual is None


# Classification


@pytest.mark.parametrize("centre", [1.0, 0.5])
def test_a_classifier_s_score_is_what_training_finds_for_the_same_weights(
    classifier_weights: Path, classifier_bundle: Path, folder: Path, centre: float
) -> None:
    from edge_mdeq.training.evaluate import evaluate_classifier
    from edge_mdeq.weights import load_weights

    for k in (1, 2, 3):  # so that classes differ in size
        (folder / "val" / "bee" / f"00{k}.jpg").unlink()
    model, card = load_weights(classifier_weights)
    data = ImageFolder(folder, "val", 5, LABELS, CLASSIFIER_SIZE, centre=centre)
    report = validate(classifier_bundle, folder, ValSettings(centre=centre))
    assert [found.evaluations for found in report.scores] == [1, 2, 4]
    for ours in report.scores:
        theirs = evaluate_classifier(model, data, card.input, ours.evaluations)
        assert ours.value == pytest.approx(theirs.accuracy)
        assert ours.balanced == pytest.approx(theirs.balanced)
        np.testing.assert_allclose(shares(ours), theirs.per_class)
        assert ours.residual == pytest.approx(theirs.residual, rel=1e-3)
    assert report.metric == "accuracy"
    assert report.counts == (PER_CLASS, 1, PER_CLASS, PER_CLASS, PER_CLASS)


def test_a_limit_takes_images_from_all_classes(classifier_bundle: Path, folder: Path) -> None:
    report = validate(classifier_bundle, folder, ValSettings(iterations=(1,), limit=5))
    assert report.images == 5
    assert report.counts == (1, 1, 1, 1, 1)


def five_classes(root: Path, labels: tuple[str, ...]) -> Path:
    """CIFAR's files with five classes, which the tiny classifier has."""
    batches = write_cifar(root) / "cifar-10-batches-bin"
    planes = [draw_photograph(k, k, CLASSIFIER_SIZE).transpose(2, 0, 1) for k in range(5)]
    records = [np.concatenate([[k], plane.ravel()]) for k, plane in enumerate(planes)]
    np.concatenate(records).astype(np.uint8).tofile(batches / "test_batch.bin")
    (batches / "batches.meta.txt").write_text("\n".join(labels))
    return root


def test_cifar_s_files(classifier_weights: Path, classifier_bundle: Path, tmp_path: Path) -> None:
    from edge_mdeq.training.evaluate import evaluate_classifier
    from edge_mdeq.weights import load_weights

    data = five_classes(tmp_path, LABELS)
    report = validate(classifier_bundle, data, ValSettings("cifar10", iterations=(4,)))
    model, card = load_weights(classifier_weights)
    theirs = evaluate_classifier(model, Cifar10(data, "val", CLASSIFIER_SIZE), card.input, 4)
    assert report.images == 5
    assert report.scores[0].value == pytest.approx(theirs.accuracy)
    assert report.scores[0].residual == pytest.approx(theirs.residual, rel=1e-3)


def test_the_same_classes_in_another_order_are_refused(
    classifier_bundle: Path, tmp_path: Path
) -> None:
    data = five_classes(tmp_path, ("eel", *LABELS[:4]))
    with pytest.raises(DataError, match=r"has the classes eel, ant.*classifier answers ant, bee"):
        validate(classifier_bundle, data, ValSettings("cifar10"))


# What is refused


def empty_split(data: Path) -> None:
    for path in (data / "val").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (empty_split, {}, "val holds no images"),
        (lambda data: cut(data / "val" / "001.png"), {}, r"val/001\.png is truncated"),
        (lambda data: None, {"ignore": ()}, r"holds labels \[7\], out of range for 4 classes"),
        (lambda data: None, {"split": "test"}, "camvid/test is not a folder"),
        (lambda data: None, {"ignore": (0, 1, 2, VOID)}, "no pixel of .* is labelled"),
        (lambda data: None, {"layout": "cityscapes"}, "expected .* to hold leftImg8bit/val/CITY/"),
    ],
)
def test_data_that_cannot_be_scored(
    segmenter_bundle: Path,
    camvid: Path,
    spoil: Spoil,
    settings: dict[str, object],
    message: str,
) -> None:
    spoil(camvid)
    with pytest.raises(DataError, match=message):
        edge_mdeq.val(segmenter_bundle, camvid, **{"ignore": (VOID,), **settings})


def test_folders_of_other_classes_are_refused(classifier_bundle: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path, ("ant", "bee", "cat", "dog", "fly"))
    message = r"without a folder: \['eel'\], folders that are no class: \['fly'\]"
    with pytest.raises(DataError, match=message):
        validate(classifier_bundle, data)
    with pytest.raises(DataError, match="CIFAR-10 has 10 classes, the model 5"):
        validate(classifier_bundle, write_cifar(tmp_path), ValSettings("cifar10"))
    with pytest.raises(DataError, match="no split 'eval', only train, val, test"):
        validate(classifier_bundle, tmp_path, ValSettings("cifar10", "eval"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "camvit"}, "layout 'camvit' is none of camvid, cityscapes, folder, cifar10"),
        ({"layout": "camvid"}, "'camvid' is not for classification.*; choose folder or cifar10"),
        ({"warm": True}, "carry the state from frame to frame; classifier classifies images"),
        ({"fit": "strech"}, "unknown fit 'strech'"),
        ({"centre": 0.0}, r"centre is 0\.0, must be in \(0, 1\]"),
        ({"limit": 0}, "limit is 0, need at least 1 image"),
    ],
)
def test_settings_that_make_no_sense(
    classifier_bundle: Path, folder: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        edge_mdeq.val(classifier_bundle, folder, **settings)


def test_bundles_that_do_not_do_it(segmenter_bundle: Path, own_copy: Copy, camvid: Path) -> None:
    def only_two(manifest: dict[str, object]) -> None:
        profile = manifest["profiles"]["ort-cpu"]  # type: ignore[index]
        profile["rungs"] = [r for r in profile["rungs"] if r["steps"][0]["evaluations"] == 2]

    def batch(manifest: dict[str, object]) -> None:
        manifest["input"]["tensor"]["shape"][0] = 2  # type: ignore[index]

    settings = ValSettings(ignore=(VOID,), iterations=(3,))
    bundle = change(own_copy(segmenter_bundle), only_two)
    with pytest.raises(SessionError, match=r"3 iterations cannot be made of .* rungs \(2\)"):
        validate(bundle, camvid, settings)
    with pytest.raises(BundleError, match=r"batches of 2; .* --batch 1"):
        validate(change(bundle, batch), camvid, ValSettings(ignore=(VOID,)))
    with pytest.raises(BundleError, match=r"gone\.mdeq does not exist"):
        validate(Path("gone.mdeq"), camvid)


def test_the_scene_is_not_at_the_model_s_size() -> None:
    """Or fitting image and mask would not have been tried above."""
    assert SCENE != SEGMENTER_SIZE
