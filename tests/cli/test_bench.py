"""``edge-mdeq bench`` as a user meets it, where there is no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mdeq.bundle import signature
from edge_mdeq.bundle.measurements import read_measurements
from edge_mdeq.bundle.reader import read_manifest
from edge_mdeq.cli import main

SAMPLE = Path(__file__).parents[2] / "samples" / "bundles" / "camvid-nano.mdeq"
ON_A_DEVICE = """
import sys
for name in ("torch", "onnx", "onnx_ir", "mdeq_export", *{without!r}):
    sys.modules[name] = None  # as if it were not installed
from edge_mdeq.cli import main
main()
"""
SHORT = ("--duration", "0.01", "--warmup", "1", "--threads", "1", "--iterations", "1", "2")


def call(*arguments: str | Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE.format(without=without), "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """A function that runs the command here; it has to fail, and what it said comes back."""

    def fail(*arguments: str | Path) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["edge-mdeq", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit, match="1"):
            main()
        return tuple(capsys.readouterr())

    return fail


def test_table_files_and_the_next_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    figures, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    done = call(
        SAMPLE, *SHORT, "--no-memory", "--percentile", "50", "95", "--json", figures, "--plot", plot
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(figures.read_text())
    assert [(row["start"], row["evaluations"]) for row in found["rows"]] == [
        ("cold", 1), ("cold", 2), ("warm", 1), ("warm", 2),
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    for row in found["rows"]:
        shown = [f"{ms:.1f}" for ms in row["milliseconds"].values()]
        assert [row["start"], row["steps"], *shown] in [line[1:5] for line in cells]
    assert found["machine"]["processor"] in done.stdout.replace("\n", " ")
    assert done.stdout.splitlines()[-1] == f"next: edge-mdeq run {SAMPLE} VIDEO annotated.mp4"
    assert plot.read_text().rstrip().endswith("</svg>")


def test_the_bundle_gets_the_figures_only_when_it_is_asked_for(
    own_copy: Callable[[Path], Path],
) -> None:
    bundle = own_copy(SAMPLE)
    before = read_measurements(bundle)
    plain = call(bundle, *SHORT, "--no-memory", "--json", "-")
    assert plain.returncode == 0, plain.stderr
    assert len(json.loads(plain.stdout)["rows"]) == 4
    assert read_measurements(bundle) == before
    saved = call(bundle, *SHORT, "--no-memory", "--save")
    assert saved.returncode == 0, saved.stderr
    after = read_measurements(bundle)
    assert len(after.pop("bench")["rows"]) == 4
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--duration", "0"), "the duration is 0 s, must be positive and finite"),
        (("--duration", "nan"), "the duration is nan s"),
        (("--percentile", "50", "101"), "101 is no percentile"),
        (("--percentile", "-5"), "-5 is no percentile"),
        (("--plot", "figure.pdf"), "cannot draw figure.pdf; a plot is a .png or .svg file"),
        (("--json", "/no/such/folder/a.json"), "there is no folder /no/such/folder"),
        (("--plot", "/no/such/folder/a.svg"), "there is no folder /no/such/folder"),
        (("--device", "gpu"), "unknown device 'gpu'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: tuple[str, ...], said: str, here: Callable[..., tuple[str, str]]
) -> None:
    out, err = here(SAMPLE, *arguments)
    assert said in err.replace("\n", " ")
    assert out == ""


def test_what_is_no_bundle_is_called_so(
    tmp_path: Path, here: Callable[..., tuple[str, str]]
) -> None:
    for path in (tmp_path, tmp_path / "nothing.mdeq"):
        assert str(path) in here(path, "--save")[1].replace("\n", "")


def test_a_bundle_of_a_stranger_is_not_measured(
    tmp_path: Path, here: Callable[..., tuple[str, str]]
) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra sign")
    for name in ("release", "stranger"):
        signature.make_key(tmp_path / f"{name}.pem")
    bundle = shutil.copytree(SAMPLE, tmp_path / "camvid-nano.mdeq")
    key = signature.read_private_key(tmp_path / "release.pem")
    signature.sign_manifest(bundle, read_manifest(bundle), key)
    wanted = ("--require-signature", tmp_path / "release.pub")
    done = call(bundle, *SHORT[:-1], *wanted)  # its memory too, in a process of its own
    assert done.returncode == 0, done.stderr
    out, err = here(bundle, "--require-signature", tmp_path / "stranger.pub")
    assert "signed" in err
    assert out == ""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = call(SAMPLE, *SHORT, "--json", tmp_path / "a.json")
    assert done.returncode == 1
    assert "is not writable" in done.stderr


def test_a_plot_without_matplotlib_names_what_brings_it(tmp_path: Path) -> None:
    done = call(SAMPLE, *SHORT, "--plot", tmp_path / "a.png", without=("matplotlib",))
    assert done.returncode == 1
    assert "edge-mdeq[plot]" in done.stderr
