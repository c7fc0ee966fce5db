"""The report of a bundle: readable alone, true to the manifest, apart from its hashes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from edge_mdeq.bundle import Manifest, Rung, open_bundle
from edge_mdeq.bundle.measurements import read_measurements, update_measurements
from edge_mdeq.weights import load_weights
from mdeq_export.cost import conv_macs, live_bytes, operators
from mdeq_export.images import scene
from mdeq_export.pieces import Inject
from mdeq_export.readouts import TiledReadMask
from mdeq_export.report import measurements
from mdeq_export.report.measurements import measure_times, take_turns
from mdeq_export.report.page import data_uri, write_report
from mdeq_export.report.plots import draw_residuals

Copy = Callable[[Path], Path]
IMAGES = np.stack([scene(seed, 64, 96) for seed in range(3)])


class Page(HTMLParser):
    """What a browser would fetch, the text of each table row, and the figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.rows: list[list[str]] = []
        self.figures = 0
        self.open_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.fetched += [found[n] or "" for n in ("src", "href", "srcset") if n in found]
        self.figures += tag == "svg"
        assert tag not in ("script", "link", "iframe")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.open_cell = self.open_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open_cell:
            self.rows[-1][-1] += data.strip()


def page_of(bundle: Path) -> Page:
    return Page((bundle / "report.html").read_text())


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_it_needs_nothing_from_elsewhere(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"{kind}_bundle")
    page = page_of(path)
    away = [name for name in page.fetched if not name.startswith(("data:image/", "#"))]
    assert away == []
    assert "@import" not in (path / "report.html").read_text()
    assert page.figures == 2
    pictures = sum(name.startswith("data:image/jpeg") for name in page.fetched)
    assert pictures == 2 * (1 + 3 * (kind == "segmenter")), "two inputs, and a mask per rung"


def test_its_tables_say_what_the_manifest_says(segmenter_bundle: Path) -> None:
    manifest = open_bundle(segmenter_bundle).manifest
    rows = page_of(segmenter_bundle).rows
    for rung in manifest.verification.rungs:
        mine = [row for row in rows if row[:2] == ["ort-cpu fp32", str(rung.evaluations)]]
        parity, outputs, gap, cost = mine
        assert parity[2:4] == [f"{rung.state_rel:.1e}", f"{rung.state_max_abs:.1e}"]
        assert parity[5] == f"{100 * rung.answer_agreement:.3f}%"
        assert outputs[2:] == [f"{gap:.1e}" for gap in rung.outputs.values()]
        assert gap[2:4] == [f"{rung.residual:.1e}", f"{rung.solver_gap_state:.1e}"]
        assert cost[6].count("/") == 2, "least, median and most"
    (heads,) = [row for row in rows if "confidence" in row]
    assert heads[2:] == list(manifest.verification.rungs[0].outputs)


def test_rungs_of_an_older_export_have_no_outputs_to_show(
    segmenter_bundle: Path, own_copy: Copy
) -> None:
    """As those that a rung is added to."""
    path = own_copy(segmenter_bundle)
    raw = json.loads((path / "manifest.json").read_text())
    for rung in raw["verification"]["rungs"][:2]:
        del rung["outputs"]
    (path / "manifest.json").write_text(json.dumps(raw))
    manifest = open_bundle(path, verify=True).manifest
    write_report(path, manifest, IMAGES, "scenes")
    assert len([row for row in page_of(path).rows if row[1] == "1"]) == 3
    assert len([row for row in page_of(path).rows if row[1] == "4"]) == 4


def test_the_reference_solve_is_drawn_as_it_went(segmenter_bundle: Path) -> None:
    report = open_bundle(segmenter_bundle).manifest.verification
    assert report.reference_curve is not None
    axes = Figure().subplots()
    draw_residuals(axes, report)
    lines = {str(line.get_label()): line for line in axes.lines}
    (name,) = [name for name in lines if name.startswith("converged reference solve, anderson m 5")]
    residuals = list(report.reference_curve.residual)
    assert lines[name].get_xydata().tolist() == [[k, r] for k, r in enumerate(residuals, 1)]
    assert residuals[0] == pytest.approx(1.0)
    assert residuals == sorted(residuals, reverse=True)
    assert report.reference_curve.worst[-1] == pytest.approx(report.reference_residual, rel=1e-3)
    assert all(len({*line.get_ydata()}) > 1 for line in axes.lines), "none is a mere level"
    older = replace(report, reference_curve=None)
    axes = Figure().subplots()
    draw_residuals(axes, older)
    assert [str(line.get_label()) for line in axes.lines] == [n for n in lines if n != name]


def test_the_numbers_are_there_as_json_too(segmenter_bundle: Path) -> None:
    manifest = open_bundle(segmenter_bundle).manifest
    found = json.loads((segmenter_bundle / "report.json").read_text())
    stored = json.loads((segmenter_bundle / "manifest.json").read_text())
    assert found["verification"] == stored["verification"]
    assert [cost["evaluations"] for cost in found["cost"]] == [1, 2, 4]
    for cost in found["cost"]:
        graph = segmenter_bundle / f"graphs/ort-cpu/solve-k{cost['evaluations']}.onnx"
        assert cost["macs"] == conv_macs(graph)
        assert cost["graph_bytes"] == graph.stat().st_size
        assert cost["weights_bytes"] == manifest.profiles["ort-cpu"].weights[0].bytes
        assert found["operators"][str(cost["evaluations"])] == operators(graph)
    assert found["state_bytes"] == sum(4 * int(np.prod(s.shape)) for s in manifest.states)
    rows = page_of(segmenter_bundle).rows
    shown = [[row[2], row[5]] for row in rows if row[0] == "ort-cpu fp32" and "/" in row[-1]]
    both = [[f"{c['macs'] / 1e6:.1f}", f"{c['live_bytes'] / 1e6:.2f}"] for c in found["cost"]]
    assert shown == both


def test_the_memory_of_a_solve_does_not_grow_with_its_evaluations(segmenter_bundle: Path) -> None:
    one, two, four = (
        live_bytes(segmenter_bundle / f"graphs/ort-cpu/solve-k{k}.onnx") for k in (1, 2, 4)
    )
    assert one <= two == four
    data = json.loads((segmenter_bundle / "report.json").read_text())
    image = 64 * 96 * 3
    assert image + 2 * data["state_bytes"] < one < 40 * data["state_bytes"]


def test_the_values_of_a_graph_live_until_their_last_use(tmp_path: Path) -> None:
    """10 floats in; 20 and 20 that are alive at once; 10 and 30 out, which a caller holds."""
    nodes = [
        onnx.helper.make_node("Concat", ["x", "x"], ["a"], axis=0),
        onnx.helper.make_node("Add", ["a", "w"], ["b"]),
        onnx.helper.make_node("Concat", ["x", "b"], ["c"], axis=0),
        onnx.helper.make_node("Relu", ["x"], ["y"]),
    ]
    given, out, long = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size])
        for name, size in (("x", 10), ("y", 10), ("c", 30))
    )
    # A weight whose shape is known, as in a composed graph: it is no value that could be freed.
    weight = onnx.numpy_helper.from_array(np.zeros(20, np.float32), "w")
    known = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [20])
    graph = onnx.helper.make_graph(nodes, "g", [given], [out, long], [weight], value_info=[known])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    assert live_bytes(tmp_path / "g.onnx") == 4 * (20 + 20 + 10 + 10 + 30)  # a and b; x, y, c


def test_wide_pictures_are_made_smaller() -> None:
    wide = np.tile(IMAGES[0], (4, 8, 1))
    raw = base64.b64decode(data_uri(wide).split(",", 1)[1])
    shown = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == (512 * wide.shape[0] // wide.shape[1], 512, 3)


def test_the_cost_is_counted_as_torch_counts_it(
    segmenter_weights: Path, segmenter_bundle: Path
) -> None:
    model, card = load_weights(segmenter_weights)
    frozen = model.freeze()
    inject, readout = Inject(frozen, card.input), TiledReadMask(frozen, 64, 96)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        u = inject(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
        z = frozen.zero_state(u)
        for _ in range(4):
            z = frozen.cell(z, u)
        readout(z)
    found = conv_macs(segmenter_bundle / "graphs/ort-cpu/solve-k4.onnx")
    assert 2 * found == counter.get_total_flops()


def test_operators_are_counted(segmenter_bundle: Path) -> None:
    one, four = (operators(segmenter_bundle / f"graphs/ort-cpu/solve-k{k}.onnx") for k in (1, 4))
    assert four["InstanceNormalization"] == 4 * one["InstanceNormalization"]
    assert list(four.values()) == sorted(four.values(), reverse=True)


def test_times_are_of_this_machine_and_not_in_the_hashes(segmenter_bundle: Path) -> None:
    manifest = open_bundle(segmenter_bundle).manifest
    assert {"report.html", "report.json", "measurements.json"}.isdisjoint(manifest.files)
    found = json.loads((segmenter_bundle / "measurements.json").read_text())
    assert set(found["milliseconds"]) == {"1", "2", "4"}
    for least, median, most in found["milliseconds"].values():
        assert 0 < least <= median <= most
    assert found["machine"]["cores"] >= 1


def test_measurements_grow_and_survive_what_is_no_json(
    segmenter_bundle: Path, own_copy: Copy
) -> None:
    path = own_copy(segmenter_bundle)
    before = read_measurements(path)
    update_measurements(path, val={"metric": "miou", "cold": {"1": 0.5}})
    assert read_measurements(path) == before | {"val": {"metric": "miou", "cold": {"1": 0.5}}}
    (path / "measurements.json").write_text("{")
    assert read_measurements(path) == {}
    open_bundle(path, verify=True)


def test_scores_that_were_measured_are_drawn(segmenter_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(segmenter_bundle)
    manifest = open_bundle(path).manifest
    scores = {"metric": "miou", "cold": {"1": 0.2, "4": 0.5}, "warm": {"1": 0.45, "4": 0.51}}
    update_measurements(path, val=scores)
    write_report(path, manifest, IMAGES, "scenes")
    assert page_of(path).figures == 3
    assert "Pictures of scenes, at" in (path / "report.html").read_text()
    assert "Task metric" in (path / "report.html").read_text()


def test_a_warning_is_the_first_thing_to_see(segmenter_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(segmenter_bundle)
    manifest = open_bundle(path).manifest
    loud = replace(manifest, warnings=("it <b>diverges</b>",))
    write_report(path, loud, IMAGES, "scenes")
    text = (path / "report.html").read_text()
    assert '<p class="warning">it &lt;b&gt;diverges&lt;/b&gt;</p>' in text
    assert text.index("diverges") < text.index("<table>")


def test_scores_of_a_classifier_are_words(classifier_bundle: Path) -> None:
    manifest: Manifest = open_bundle(classifier_bundle).manifest
    text = (classifier_bundle / "report.html").read_text()
    captions = re.findall(r"residual [\d.e-]+\s*: ([^<]+)<", text)
    assert len(captions) == 2 * 3
    for caption in captions:
        names, scores = zip(
            *(part.rsplit(" ", 1) for part in caption.strip().split(", ")), strict=True
        )
        assert set(names) <= set(manifest.labels)
        values = [float(score) for score in scores]
        assert values == sorted(values, reverse=True)


def test_classes_without_labels_have_their_numbers(classifier_bundle: Path, own_copy: Copy) -> None:
    """As published weights have that were imported without ``--labels``."""
    path = own_copy(classifier_bundle)
    images = np.stack([scene(seed, 32, 32) for seed in range(2)])
    write_report(path, replace(open_bundle(path).manifest, labels=()), images, "scenes")
    text = (path / "report.html").read_text()
    assert re.search(r"residual [\d.e-]+\s*: class \d 0\.\d\d, class \d 0", text)


def test_the_same_machine_measures_again(classifier_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(classifier_bundle)
    found = measure_times(path, open_bundle(path).manifest)
    assert found["profile"] == "ort-cpu"
    assert found["machine"] == read_measurements(path)["machine"]


def test_graphs_that_memory_is_not_spent_on_take_no_turns(
    classifier_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is loaded at a time, and as it takes long run no more often than is needed."""
    groups: list[list[int]] = []
    runs: list[int] = []

    def note(path: Path, rungs: Sequence[Rung], given: Any) -> dict[int, list[float]]:
        groups.append([rung.evaluations for rung in rungs])
        taken = take_turns(path, rungs, given)
        runs.extend(len(times) for times in taken.values())
        return taken

    monkeypatch.setattr(measurements, "take_turns", note)
    manifest = open_bundle(classifier_bundle).manifest
    measure_times(classifier_bundle, manifest)
    assert groups == [[1, 2, 4]]
    assert runs == [measurements.RUNS] * 3
    groups.clear()
    runs.clear()
    monkeypatch.setattr(measurements, "HELD", 1)
    monkeypatch.setattr(measurements, "SECONDS", 0.0)
    found = measure_times(classifier_bundle, manifest)
    assert groups == [[1], [2], [4]]
    assert runs == [measurements.FEWEST_RUNS] * 3
    assert list(found["milliseconds"]) == ["1", "2", "4"]
