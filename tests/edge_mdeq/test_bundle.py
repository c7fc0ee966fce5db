"""The bundle: a manifest that is a contract, files that are checked, and a write that is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge_mdeq
from edge_mdeq.bundle import (
    SCHEMA,
    Bundle,
    FileEntry,
    InputSpec,
    Manifest,
    OutputSpec,
    Parts,
    Profile,
    Rung,
    RungParity,
    SolverSpec,
    Step,
    TensorSpec,
    Tolerance,
    Verification,
    WeightsFile,
    open_bundle,
    writer,
    writing_bundle,
)
from edge_mdeq.bundle.decoding import decode_manifest
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.bundle.writer import describe_files
from edge_mdeq.config import Provenance
from edge_mdeq.errors import BundleError, ConfigError

GRAPH, WEIGHTS = "graphs/ort-cpu/solve-k4.onnx", "graphs/ort-cpu/fp32.data"


def producer(name: str) -> bytes:
    """A graph without nodes that names its producer."""
    return bytes([0x12, len(name)]) + name.encode()


PARTS = {f"graphs/ort-cpu/{n}.onnx": producer(n) for n in ("inject", "advance-k1", "readout", "c")}
PART_FIELDS = ("inject", "advance.0.graph", "readout", "pieces.c")
CONTENT = {GRAPH: producer("graph"), WEIGHTS: b"weights" * 100, **PARTS}


def parts() -> Parts:
    inject, advance, readout, cell = PARTS
    rungs = (Rung((Step("fp32", 1),), advance),)
    return Parts("fp32", inject, rungs, readout, pieces={"c": cell})


def manifest_of(content: dict[str, bytes], name: str = "tiny") -> Manifest:
    """A manifest with something in every field."""
    return Manifest(
        name=name,
        created_by="edge-mdeq 0.1.0",
        task="segmentation",
        labels=("sky", "road"),
        palette=((0, 0, 255), (90, 60, 120)),
        input=InputSpec(
            TensorSpec("image", "uint8", (1, 32, 48, 3)), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        ),
        output=OutputSpec(TensorSpec("mask", "uint8", (1, 32, 48)), "class_indices"),
        confidence=TensorSpec("confidence", "float32", (1, 8, 12)),
        states=(
            TensorSpec("state_0", "float32", (1, 8, 8, 12)),
            TensorSpec("state_1", "float32", (1, 16, 4, 6)),
        ),
        state_outputs=("next_0", "next_1"),
        residual=TensorSpec("residual", "float32", (1,)),
        injection=TensorSpec("injection", "float32", (1, 8, 8, 12)),
        values=("value_0", "value_1"),
        history=(TensorSpec("history_0", "float32", (1, 8, 8, 12)),),
        history_outputs=("next_history_0",),
        solver=SolverSpec("anderson", {"m": 2.0}, best=True),
        profiles={
            "ort-cpu": Profile(
                opset=21,
                weights=(WeightsFile("fp32", WEIGHTS, len(content[WEIGHTS])),),
                rungs=(Rung((Step("fp32", 3), Step("fp32", 1)), GRAPH),),
                parts=(parts(),) if PARTS.keys() <= content.keys() else (),
            )
        },
        verification=Verification(
            images=2,
            source="test://",
            tolerances={"fp32": Tolerance(1e-3, 1e-4, 0.999)},
            reference_evaluations=64,
            reference_residual=1e-5,
            backend="onnxruntime",
            rungs=(RungParity("ort-cpu", "fp32", 4, 1e-6, 1e-6, 1e-5, 1.0, 0.1, 0.99, 0.05),),
        ),
        provenance=Provenance(name="tiny", licence="CC0"),
        files={n: FileEntry(hashlib.sha256(b).hexdigest(), len(b)) for n, b in content.items()},
        metrics={"miou": 0.5},
        warnings=("Überraschung",),
    )


def fill(folder: Path, content: dict[str, bytes] | None = None, name: str = "tiny") -> None:
    """Write files and their manifest into ``folder``."""
    content = CONTENT if content is None else content
    for file, data in content.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest_of(content, name)))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.mdeq"
    with writing_bundle(path) as folder:
        fill(folder)
    return path


@pytest.fixture
def raw() -> dict[str, Any]:
    """The manifest as decoded JSON, to be damaged."""
    value: dict[str, Any] = json.loads(encode_manifest(manifest_of(CONTENT)))
    return value


def decode(value: object) -> Manifest:
    return decode_manifest(json.dumps(value).encode(), "manifest.json")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# The manifest


def test_a_manifest_survives_its_json() -> None:
    manifest = manifest_of(CONTENT)
    assert decode_manifest(encode_manifest(manifest), "manifest.json") == manifest


def test_the_same_manifest_gives_the_same_bytes() -> None:
    first = encode_manifest(manifest_of(CONTENT))
    assert encode_manifest(decode_manifest(first, "manifest.json")) == first


def test_a_rung_counts_the_evaluations_of_all_its_steps() -> None:
    assert manifest_of(CONTENT).profiles["ort-cpu"].rungs[0].evaluations == 4


def test_the_input_size_is_height_and_width() -> None:
    assert manifest_of(CONTENT).input.size == (32, 48)


def test_confidence_may_be_absent(raw: dict[str, Any]) -> None:
    raw["confidence"] = None
    assert decode(raw).confidence is None


def test_a_newer_schema_asks_for_an_upgrade_even_where_it_has_new_fields(
    raw: dict[str, Any],
) -> None:
    raw |= {"schema": SCHEMA + 1, "new": 1, "created_by": "edge-mdeq 9.1"}
    with pytest.raises(BundleError, match=r"schema 2, .*: pip install 'edge-mdeq>=9\.1'"):
        decode(raw)
    raw["requires"] = "8.2"
    with pytest.raises(BundleError, match=r"schema 2, .*: pip install 'edge-mdeq>=8\.2'"):
        decode(raw)
    raw |= {"requires": "1'; rm -rf ~", "created_by": ["9"]}
    with pytest.raises(BundleError, match=r"schema 2, .*: pip install --upgrade edge-mdeq"):
        decode(raw)


def test_a_version_that_is_required_is_named_where_only_the_schema_is_known(
    raw: dict[str, Any],
) -> None:
    raw |= {"requires": "99.0"}
    with pytest.raises(BundleError, match=r"not for edge-mdeq .*'edge-mdeq>=99\.0'"):
        decode(raw)


@pytest.mark.parametrize("value", [[], 3, {}, {"format": "other"}], ids=str)
def test_other_json_is_not_a_manifest(value: object) -> None:
    with pytest.raises(BundleError, match="not the manifest of an edge-mdeq bundle"):
        decode(value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 100_000],
    ids=["empty", "cut off", "not UTF-8", "nested without end"],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is not valid JSON"):
        decode_manifest(data, "manifest.json")


def put(raw: dict[str, Any], path: str, value: object) -> None:
    """Set the field at ``path``, such as ``states.0.name``."""
    *parents, last = path.split(".")
    target: Any = raw
    for name in parents:
        target = target[int(name) if name.isdigit() else name]
    target[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "detection", r"`\$\.task`"),
        ("labels", "sky", r"Expected `array`, got `str` - at `\$\.labels`"),
        ("states.1.shape", [1, "16"], r"Expected `int`, got `str` - at `\$\.states\[.*\]\.shape"),
        ("input.tensor.shape", [1, 32, 48], r"input shape \(1, 32, 48\) is not \(B, H, W, 3\)"),
        ("input.mean", [0.1, 0.2], r"at `\$\.input\.mean`"),
        ("output.kind", "logits", r"`\$\.output\.kind`"),
        ("solver.settings", {"tau": "x"}, r"`\$\.solver\.settings"),
        ("verification.tolerances.fp32.atol", None, r"Expected `float`, got `null` - at `\$\.ver"),
        ("palette", [[0, 0]], r"at `\$\.palette"),
        ("state_outputs", ["next_0"], "states and state_outputs must have the same positive"),
        ("values", ["value_0"], "values and states must have the same length"),
        ("history_outputs", [], "history and history_outputs must have the same length"),
        ("profiles", {"x": {"opset": 21, "weights": [], "rungs": []}}, r"profiles\.x has no rungs"),
        ("states.0.shape", [1, 2**31, 2**31, 2], r"more than \d+ bytes"),
        ("states.0.shape", [1, 0], r"\[1, 0\], which is none"),
        ("states.0.shape", [], r"\[\], which is none"),
        ("states.0.shape", [-2, 4], r"\[-2, 4\], which is none"),
        ("output.tensor.dtype", "object", "has the type 'object'; known: "),
        ("labels", ["x"] * 257, "257 are more than a mask of uint8 can name"),
        ("labels", ["sky", "\x1b[2J"], r"`\$\.labels\[1\]` holds control characters"),
        ("palette", [[0, 0, 256]], "three numbers from 0 to 255"),
        ("requires", "soon", "not a version"),
        (
            "profiles.ort-cpu.costs",
            {GRAPH: {"nodes": 1, "weights": -1, "largest_weight": 0, "values": 0}},
            "less than nothing",
        ),
    ],
)
def test_a_misfit_is_named_with_its_path(
    raw: dict[str, Any], field: str, value: object, message: str
) -> None:
    put(raw, field, value)
    with pytest.raises(BundleError, match=f"manifest.json: .*{message}"):
        decode(raw)


def test_a_missing_field_is_named(raw: dict[str, Any]) -> None:
    del raw["residual"]["name"]
    with pytest.raises(BundleError, match=r"required field `name` - at `\$\.residual`"):
        decode(raw)


def test_an_unknown_field_is_named_with_its_path(raw: dict[str, Any]) -> None:
    raw["states"][1]["layout"] = "NCHW"
    with pytest.raises(BundleError, match=r"unknown field `\$\.states\[1\]\.layout`"):
        decode(raw)


def test_a_rung_without_evaluations_is_refused(raw: dict[str, Any]) -> None:
    raw["profiles"]["ort-cpu"]["rungs"][0]["steps"][1]["evaluations"] = 0
    with pytest.raises(BundleError, match="needs steps of at least one evaluation"):
        decode(raw)


@pytest.mark.parametrize(
    "used",
    ["rungs.0.graph", "weights.0.file", *(f"parts.0.{n}" for n in PART_FIELDS)],
)
def test_a_file_that_a_profile_uses_must_be_listed(raw: dict[str, Any], used: str) -> None:
    put(raw, f"profiles.ort-cpu.{used}", "elsewhere.bin")
    with pytest.raises(BundleError, match=r"ort-cpu: 'elsewhere\.bin' is not listed in files"):
        decode(raw)


def test_a_graph_is_an_onnx_file_by_its_name(raw: dict[str, Any]) -> None:
    """ONNX Runtime takes NAME.ort for a format of its own, which nothing here looks through."""
    raw["files"]["solve.ort"] = raw["files"][GRAPH]
    raw["profiles"]["ort-cpu"]["rungs"][0]["graph"] = "solve.ort"
    with pytest.raises(BundleError, match=r"'solve\.ort' is no \.onnx file"):
        decode(raw)


@pytest.mark.parametrize("entry", [{"sha256": "0", "bytes": 1}, {"sha256": "0" * 64, "bytes": -1}])
def test_a_files_entry_must_be_able_to_hold(raw: dict[str, Any], entry: dict[str, Any]) -> None:
    raw["files"][GRAPH] = entry
    with pytest.raises(BundleError, match="are no file"):
        decode(raw)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "graphs/../../secret", "a\\..\\b", "", "."]
)
def test_a_path_that_leaves_the_bundle_is_refused(raw: dict[str, Any], name: str) -> None:
    raw["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    with pytest.raises(BundleError, match="is not a path inside the bundle"):
        decode(raw)


def test_a_senseless_manifest_cannot_even_be_made() -> None:
    with pytest.raises(ConfigError, match="same positive length"):
        replace(manifest_of(CONTENT), states=(), state_outputs=())


# Reading


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


# Writing


def test_a_written_bundle_leaves_nothing_beside_it(bundle: Path) -> None:
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_nothing_is_at_the_place_until_the_block_ends(tmp_path: Path) -> None:
    with writing_bundle(tmp_path / "tiny.mdeq") as folder:
        fill(folder)
        assert not (tmp_path / "tiny.mdeq").exists()


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with writing_bundle(tmp_path / "a" / "b" / "tiny.mdeq") as folder:
        fill(folder)
    open_bundle(tmp_path / "a" / "b" / "tiny.mdeq", verify=True)


def test_files_are_described_by_relative_name_hash_and_size(bundle: Path) -> None:
    assert describe_files(bundle) == manifest_of(CONTENT).files


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"must end in \.mdeq"), writing_bundle(tmp_path / "tiny"):
        pytest.fail("entered")


def test_an_existing_bundle_is_refused_without_force(bundle: Path) -> None:
    with pytest.raises(BundleError, match="already exists; replace it with --force"):
        replace_bundle(bundle, force=False)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"


def replace_bundle(path: Path, force: bool = True) -> None:
    with writing_bundle(path, force=force) as folder:
        fill(folder, {GRAPH: producer("new"), WEIGHTS: b"new weights"}, name="new")


def test_force_replaces_a_bundle_as_a_whole(bundle: Path) -> None:
    (bundle / "left.over").write_bytes(b"")
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert names(bundle) == ["graphs", "manifest.json"]
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_a_reader_sees_the_old_bundle_until_it_sees_the_new_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look_and_exchange(new: Path, path: Path) -> bool:
        seen.append(open_bundle(path, verify=True).manifest.name)
        exchanged = exchange(new, path)
        seen.append(open_bundle(path, verify=True).manifest.name)
        return exchanged

    exchange = writer.exchange
    monkeypatch.setattr(writer, "exchange", look_and_exchange)
    replace_bundle(bundle)
    assert seen == ["tiny", "new"]


def test_force_replaces_where_folders_cannot_be_exchanged(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "exchange", lambda a, b: False)
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_force_never_replaces_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "home.mdeq").mkdir()
    (tmp_path / "home.mdeq" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        replace_bundle(tmp_path / "home.mdeq")
    assert names(tmp_path / "home.mdeq") == ["thesis.tex"]


def fail_while_writing(path: Path, error: type[BaseException]) -> None:
    with writing_bundle(path, force=True) as folder:
        (folder / "half").write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_the_old_bundle_and_no_temporary(
    bundle: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        fail_while_writing(bundle, error)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_a_full_disk_leaves_the_old_bundle_and_no_temporary(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot write .*: No space left"):
        replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot write to .*/file"):
        replace_bundle(tmp_path / "file" / "tiny.mdeq")


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from edge_mdeq.bundle import writer, writing_bundle

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def exchange_and_die(new, path):
    exchange(new, path)
    die()

def rename_once_and_die(source, target):
    rename(source, target)
    die()

exchange, rename, moment = writer.exchange, os.rename, sys.argv[3]
if moment == "before the exchange":
    writer.exchange = die
elif moment == "after the exchange":
    writer.exchange = exchange_and_die
elif moment == "while the old one is removed":
    shutil.rmtree = lambda place, **_: die(os.remove(place / "new" / "manifest.json"))
elif moment == "between two renames":
    writer.exchange = lambda new, path: False
    os.rename = rename_once_and_die
with writing_bundle(Path(sys.argv[1]), force=True) as folder:
    if moment == "while it is written":
        (folder / "manifest.json").write_text("half")
        die()
    shutil.copytree(sys.argv[2], folder, dirs_exist_ok=True)
"""


def kill_a_writer(bundle: Path, new: Path, moment: str) -> None:
    package_root = str(Path(edge_mdeq.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(bundle), str(new), moment],
        env=os.environ | {"PYTHONPATH": package_root},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """What is to take the bundle's place, elsewhere."""
    path = tmp_path / "elsewhere"
    fill(path, name="other")
    return path


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("while it is written", "tiny"),
        ("before the exchange", "tiny"),
        ("after the exchange", "other"),
        ("while the old one is removed", "other"),
    ],
)
def test_a_killed_export_leaves_a_whole_bundle_and_nothing_in_the_next_one_s_way(
    bundle: Path, other: Path, moment: str, left: str
) -> None:
    kill_a_writer(bundle, other, moment)
    assert open_bundle(bundle, verify=True).manifest.name == left
    assert len(names(bundle.parent)) == 3, "what it left behind"
    with pytest.raises(BundleError, match="already exists"):
        replace_bundle(bundle, force=False)
    assert names(bundle.parent) == ["elsewhere", "tiny.mdeq"], "even an attempt tidies up"
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"


def test_a_kill_where_folders_cannot_be_exchanged_loses_nothing(bundle: Path, other: Path) -> None:
    kill_a_writer(bundle, other, "between two renames")
    with pytest.raises(BundleError, match=r"was killed, and left it in (\S*/old): rename") as hint:
        open_bundle(bundle)
    aside = Path(str(hint.value).rsplit(" in ", 1)[1].split(": rename", maxsplit=1)[0])
    assert open_bundle(aside, verify=True).manifest.name == "tiny"
    with pytest.raises(BundleError, match="already exists"):
        replace_bundle(bundle, force=False)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["elsewhere", "tiny.mdeq"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_swap_that_stops_in_the_middle_is_undone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def rename(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise error
        original(source, target)

    original = os.rename
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(writer, "exchange", lambda a, b: False)
    with pytest.raises(BundleError if error is OSError else error):
        replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_two_exports_at_once_leave_each_other_alone(bundle: Path) -> None:
    with writing_bundle(bundle, force=True) as first:
        fill(first, name="first")
        replace_bundle(bundle)
        assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert open_bundle(bundle, verify=True).manifest.name == "first"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_where_nothing_can_be_locked_others_folders_stay(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: whether their writer lives cannot be known."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("edge_mdeq.files.fcntl.flock", refuse)
    fill(bundle.parent / f".{bundle.name}.abcd.tmp" / "new", name="theirs")
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert len(names(bundle.parent)) == 2
