"""Damaged input: it is taken or refused, and nothing else happens.

No crash, no hang, no more memory than 1 GiB beyond what is loaded, no exception but those of
``edge_mdeq.errors``. Each seed is a case; the seeds of what was found stay in ``FOUND``.

The long run (``-m fuzz``) keeps its results in ``out/fuzz.json`` and goes on where it was stopped.
``EDGE_MDEQ_FUZZ_CASES`` and ``EDGE_MDEQ_FUZZ_FIRST`` choose how many cases, and the first seed.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from harm import SEED
from kept import fuzz_on, read_results
from mutate import mutate_bytes, mutate_json
from running import Tally, fuzz

pytest.importorskip("cv2", reason="needs the extra camera")
pytest.importorskip("starlette", reason="needs the extra web")
pytest.importorskip("cryptography", reason="needs the extra sign")
pytest.importorskip("torch", reason="some of what is read here is read by torch alone")

from targets import TARGETS

FEW = 24  # cases of each target in every run of the tests
MANY = int(os.environ.get("EDGE_MDEQ_FUZZ_CASES", "10000"))
FIRST = int(os.environ.get("EDGE_MDEQ_FUZZ_FIRST", "0"))  # seed
RESULTS = Path(__file__).parents[2] / "out" / "fuzz.json"
FOUND = {
    # bytes that are not UTF-8 within a string; hundreds of dimensions; two billion evaluations
    "manifests": (35, 132, 2225, 2469),
    "requests": (43, 2430, 4006),  # bodies without an end, and such as are no HTTP
    # brackets that are none of an address, a null character in a name, either in several places
    "sources": (331, 397, 1600, 3182),
    "settings": (80,),  # a name that is longer than any file's
}


def check(tally: Tally, cases: int) -> None:
    assert not tally.findings, "\n".join(map(str, tally.findings))
    assert tally.cases == cases
    assert tally.taken + tally.refused == cases, "refused without a word"


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_damaged_is_taken_or_refused(target: str, examples: Path) -> None:
    seeds = [*FOUND.get(target, ()), *range(FEW)]
    check(fuzz(target, examples, seeds), len(seeds))


@pytest.mark.fuzz
@pytest.mark.parametrize("target", TARGETS)
def test_ten_thousand_times(
    target: str, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = fuzz_on(target, examples, FIRST, MANY, RESULTS)
    with capsys.disabled():
        print(
            f"\n{target:<12} {tally.cases:>6} cases, {tally.taken} taken, {tally.refused} refused"
        )
        print("\n".join(map(str, tally.findings)))
    check(tally, MANY)


# The checks themselves


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ("crash", "crashed with SIGABRT"),
        ("hang", "hung"),
        ("memory", "took more memory than it may"),
        ("exception", "raised ValueError: oh"),
    ],
)
def test_each_kind_of_harm_is_seen_and_the_next_case_runs(
    harm: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_MDEQ_FUZZ_HARM", harm)
    monkeypatch.setenv("EDGE_MDEQ_FUZZ_HANG_S", "0.5")
    tally = fuzz("harm", tmp_path, (SEED - 1, SEED, SEED + 1))
    assert [(finding.seed, finding.what) for finding in tally.findings] == [(SEED, what)]
    assert tally.cases == 3
    assert tally.taken == 2


def test_a_long_run_goes_on_where_it_stopped_and_tries_again_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "out" / "fuzz.json"
    monkeypatch.setenv("EDGE_MDEQ_FUZZ_HARM", "exception")
    part = fuzz_on("harm", tmp_path, 2, 3, results)
    assert (part.cases, part.taken, part.findings) == (3, 3, [])
    whole = fuzz_on("harm", tmp_path, 2, 8, results)
    assert (whole.cases, whole.taken) == (8, 7)
    assert [finding.seed for finding in whole.findings] == [SEED]
    assert read_results(results)["harm"][0] == whole
    monkeypatch.setenv("EDGE_MDEQ_FUZZ_HARM", "none")
    mended = fuzz_on("harm", tmp_path, 2, 8, results)
    assert (mended.cases, mended.taken, mended.findings) == (8, 8, [])
    other = fuzz_on("harm", tmp_path, 90, 1, results)
    assert (other.first, other.cases) == (90, 1)


def test_damage_is_of_every_kind_and_the_same_for_the_same_seed() -> None:
    data = bytes(range(256)) * 4
    made = [mutate_bytes(random.Random(seed), data) for seed in range(300)]
    assert made == [mutate_bytes(random.Random(seed), data) for seed in range(300)]
    assert sum(each == data for each in made) < 10
    sizes = {(len(each) > len(data)) - (len(each) < len(data)) for each in made}
    assert sizes == {-1, 0, 1}
    text = b'{"a": [1, 2, {"b": "c"}], "d": 0.5}'
    values = {mutate_json(random.Random(seed), text) for seed in range(300)}
    assert len(values) > 100
    for value in values:
        json.loads(value)
