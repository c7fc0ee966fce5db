"""What docs/fleet offers to Prometheus and Grafana: valid, and of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mdeq_runtime import Result
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.reasons import ColdKind
from mdeq_runtime.sources.status import Picture, State, Status

FLEET = Path(__file__).parents[2] / "docs" / "fleet"
METRIC = re.compile(r"\b(edge_mdeq_\w+)(\{[^}]*\})?")
LABEL = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")


@pytest.fixture(scope="module")
def samples() -> dict[str, set[str]]:
    """Every sample that a runtime with a camera shows, with the names of its labels."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from mdeq_runtime.prometheus import prometheus_text

    class Camera:
        status = Status()

    metrics = Metrics()
    metrics.source = Camera()  # type: ignore[assignment]
    times = {"read": 1.0, "solve": 2.0}
    mask = np.zeros((2, 2), np.uint8)
    for age in (10.0, 20.0):
        metrics.add(
            Result(mask, None, 2, 0.1, True, False, "", times, cold="first_frame", age_ms=age)
        )
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(prometheus_text(metrics))
        for sample in family.samples
    }


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FLEET / "dashboard.json").read_text())
    return found


def expressions() -> Iterator[str]:
    """All PromQL: of the alerts, of their tests, and of the dashboard."""
    yield (FLEET / "rules.yml").read_text()
    yield (FLEET / "rules_test.yml").read_text()
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (v["definition"] for v in dashboard()["templating"]["list"] if "definition" in v)


def test_every_metric_is_one_that_the_runtime_has(samples: dict[str, set[str]]) -> None:
    used = [match for text in expressions() for match in METRIC.finditer(text)]
    assert len(used) > 30
    for match in used:
        assert match[1] in samples, f"{match[1]}: there is no such metric"
        for label, _, _ in LABEL.findall(match[2] or ""):
            assert label in samples[match[1]] | {"instance", "job"}, f"{match[0]}: no such label"


def test_every_state_and_reason_is_one_that_there_is() -> None:
    known = {
        "edge_mdeq_source_state": {state.value for state in State},
        "edge_mdeq_source_picture": {picture.value for picture in Picture},
        "edge_mdeq_cold_starts_total": set(get_args(ColdKind)),
    }
    seen = set()
    for text in expressions():
        for match in METRIC.finditer(text):
            for label, _, values in LABEL.findall(match[2] or ""):
                if label in ("state", "reason"):
                    assert set(values.split("|")) <= known[match[1]], match[0]
                    seen.add(match[1])
    assert seen == known.keys()


def test_the_dashboard_is_one(samples: dict[str, set[str]]) -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, f"{panel['title']} lies upon another panel"
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    shown = {m[1] for panel in panels for t in panel["targets"] for m in METRIC.finditer(t["expr"])}
    for wanted in ("residual_sum", "cold_starts_total", "frames_dropped_total", "source_state"):
        assert f"edge_mdeq_{wanted}" in shown


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool (Debian's prometheus) is not installed")
    return found


def check(promtool: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [promtool, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_configuration(promtool: str, tmp_path: Path) -> None:
    for file in FLEET.glob("*.yml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "edge-mdeq.token").write_text("x" * 24)
    check(promtool, "check", "config", "prometheus.yml", cwd=tmp_path)


def test_every_alert_fires_when_it_should_and_is_quiet_otherwise(promtool: str) -> None:
    check(promtool, "test", "rules", "rules_test.yml", cwd=FLEET)
    rules = re.findall(r"alert: (\w+)", (FLEET / "rules.yml").read_text())
    tested = (FLEET / "rules_test.yml").read_text()
    assert [rule for rule in rules if tested.count(rule) < 2] == [], "quiet once, firing once"


def test_prometheus_understands_the_dashboard(promtool: str, tmp_path: Path) -> None:
    texts = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{index}", "expr": text.replace("$__rate_interval", "1m")}
        for index, text in enumerate(texts)
    ]
    whole = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(json.dumps(whole))  # JSON is YAML
    said = check(promtool, "check", "rules", "rules.yml", cwd=tmp_path)
    assert f"{len(texts)} rules found" in said


def test_the_guide_names_files_that_are_there() -> None:
    text = (FLEET.parent / "fleet.md").read_text()
    named = re.findall(r"`fleet/([\w.]+)`", text)
    assert sorted(named) == sorted(file.name for file in FLEET.iterdir())
