"""``edge-mdeq tune``: what it prints, leaves and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import VOID
from tuning import Trained
from typer.testing import CliRunner

from edge_mdeq.cli import app, main


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "100"}
    )


def options(trained: Trained, out: Path) -> list[str | Path]:
    return [
        "tune", trained[0], "--iterations", "1", "--data", trained[1], "-o", out, "--epochs", "1",
        "--batch", "3", "--ignore", str(VOID),
    ]  # fmt: skip


def test_the_command_tunes_and_names_the_next_one(trained: Trained, tmp_path: Path) -> None:
    result = invoke(*options(trained, tmp_path), "--max-metric-drop", "1")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "tune.json").read_text())
    for key, value in report["after"].items():
        start, count = key.split("_")
        assert re.search(rf"{start} +│ +{count} │ +{report['before'][key]:.4f} │ +{value:.4f}",
                         result.output)  # fmt: skip
    assert "tune.json and tune.svg" in result.output
    weights = tmp_path / "weights.safetensors"
    assert f"next: edge-mdeq export {weights} -o tuned.mdeq --iterations 1" in result.output


def test_the_command_s_weights_are_those_of_the_run(segmenter: Trained, tmp_path: Path) -> None:
    """A checkpoint remembers what it was started for."""
    chosen = ["--label", "0.5", "--cold-weight", "3", "--warm-weight", "1", "--far-weight", "2"]
    result = invoke(*options(segmenter, tmp_path), *chosen, "--max-metric-drop", "1")
    assert result.exit_code == 0, result.output
    aims = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["aims"]
    assert [aims[f"{name}_weight"] for name in ("cold", "warm", "far")] == [3, 1, 2]
    assert aims["label"] == 0.5


def test_the_command_fails_if_the_converged_answer_loses_too_much(
    segmenter: Trained, tmp_path: Path
) -> None:
    """Every change is more than a drop of -2; what was made is kept to be looked at."""
    result = invoke(*options(segmenter, tmp_path), "--max-metric-drop", "-2")
    assert result.exit_code == 1
    assert "the converged miou fell by" in result.output
    assert "try a smaller --lr or more --iterations" in result.output
    assert (tmp_path / "weights.safetensors").exists()


def test_the_command_takes_several_void_values_in_a_row(
    segmenter: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    argv = ["edge-mdeq", *map(str, options(segmenter, tmp_path / "out")), "9", "--iterations", "26"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "error: iterations is 26, must be between 1 and the reference's 26" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_the_command_s_help_describes_the_weights() -> None:
    shown = " ".join(re.sub(r"[│╭╰─╮╯]", " ", invoke("tune", "--help").output).split())
    assert "weights PATH A .safetensors file with its .json beside it" in shown


def test_the_command_s_help_describes_every_option() -> None:
    shown = " ".join(re.sub(r"[│╭╰─╮╯]", " ", invoke("tune", "--help").output).split())
    for text in (
        "Evaluations of f from a cold start that should suffice.",
        "A labelled dataset's folder.",
        "Go on with the run that OUT holds.",
        "How much the converged answer may lose.",
    ):
        assert text in shown
