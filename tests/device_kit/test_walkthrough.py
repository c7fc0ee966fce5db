"""docs/jetson.md, docs/cameras.md and the kit name only commands, options, files and sources that
exist.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import typer

from edge_mdeq.cli import GREEDY, app
from edge_mdeq.cli.greedy import spread
from mdeq_runtime.sources import KNOWN_SCHEMES
from mdeq_runtime.uris import split_scheme

ROOT = Path(__file__).parents[2]
KIT = ROOT / "runtime" / "device"
TEXT = (ROOT / "docs" / "jetson.md").read_text()
CAMERAS = (ROOT / "docs" / "cameras.md").read_text()
VERBS = typer.main.get_command(app)
assert isinstance(VERBS, click.Group)


def uses(text: str) -> list[list[str]]:
    """The arguments of every ``edge-mdeq VERB ...`` in a block or a span of code."""
    joined = text.replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", joined, re.M | re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", joined, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [part for span in spans for part in span.replace("\n", " ").split(";")]
    found = (re.search(r"(?:^|\s)edge-mdeq ([a-z].*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


USES = [*uses(TEXT), *uses(CAMERAS)]


def test_the_walkthrough_goes_all_the_way() -> None:
    assert {use[0] for use in USES} >= {"export", "inspect", "doctor", "engine", "run"}


@pytest.mark.parametrize("arguments", USES, ids=" ".join)
def test_every_command_is_one_that_the_command_line_takes(arguments: list[str]) -> None:
    verb, *rest = spread(arguments, GREEDY)
    command = VERBS.commands[verb]
    if not rest and any(parameter.required for parameter in command.params):
        return  # only named, in a sentence
    given = command.make_context(verb, rest).params
    source = given.get("source")
    if source is not None and source != "SOURCE":
        scheme, _ = split_scheme(source)
        assert scheme in ("", *KNOWN_SCHEMES), source


def test_every_option_of_the_input_is_described_and_exists() -> None:
    taken = {name for parameter in VERBS.commands["run"].params for name in parameter.opts}
    named = set(re.findall(r"--(?:input-[a-z-]+|realtime)", CAMERAS))
    assert named == {name for name in taken if re.match("--(input-|realtime)", name)}


def test_every_option_of_the_script_that_is_named_is_one_that_it_has() -> None:
    help_text = subprocess.run(
        ["sh", str(KIT / "install.sh"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"^  (--[a-z-]+)", help_text, re.M))
    section = TEXT.split("## 3. ")[1].split("## 4. ")[0]
    named = set(re.findall(r"(?<![\w-])--[a-z-]+", section))
    elsewhere = {"--wheel-dir", "--device"}  # of pip and of edge-mdeq
    assert named - elsewhere <= options
    script = (KIT / "install.sh").read_text()
    taken = set(re.findall(r"--[a-z-]+", script.split("parse() {")[1].split("esac")[0]))
    assert taken == options, "the help is of the options that are read"


def test_every_file_of_the_kit_that_is_named_is_there() -> None:
    for name in set(re.findall(r"runtime/device/[\w@.-]*[\w]", TEXT)):
        assert (ROOT / name).is_file(), name


def test_what_has_not_been_tried_is_said_at_the_top() -> None:
    assert "Not tried on a board" in "".join(TEXT.splitlines(keepends=True)[:4])
