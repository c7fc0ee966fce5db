"""Whole verbs, killed at random moments of their work; prints what was left.

    python tests/faults/verbs.py [VERB...] --kills 50 --seed 0

Each is called in a child that was forked after the imports, so that the moments fall into the work.
Then the same verb is called again and must succeed. Ends with status 1 if anything was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder and its conftest

RECIPE = """
[model]
task = "segmentation"
classes = 3
channels = [8, 16]
expansion = 1
groups = 8

[input]
height = 32
width = 32

[data]
ignore = [7]
labels = ["ground", "disc", "box"]
palette = [[90, 90, 90], [220, 40, 40], [40, 40, 220]]

[optim]
epochs = 6
batch = 3
"""
VERBS = {  # the command, and what goes on after a kill
    "import": ["import", "v2.pkl", "-o", "imported.safetensors", "--imgsz", "64", "64"],
    "export": ["export", "base.safetensors", "-o", "made.mdeq", "--iterations", "1", "2", "-q"],
    "unroll": ["unroll", "base.mdeq", "--iterations", "3", "5", "-q"],
    "train": ["train", "recipe.toml", "--data", "data", "--out", "out"],
    "engine": ["engine", "rtx.mdeq", "--compute-capability", "SM86", "--iterations", "1", "-q"],
    "tune": ["tune", "trained.safetensors", "--iterations", "2", "--data", "data", "-o", "tuned"],
    "run": ["run", "base.mdeq", "test://?fps=200", "video.mp4", "--max-frames", "150"],
}
MORE = {
    "import": ["--downsample-times", "2", "--force"],
    "export": ["--force"],
    "engine": ["--force"],
    "train": [],
    "tune": ["--epochs", "2", "--batch", "3", "--ignore", "7"],
    "run": ["--output", "r.jsonl", "--output", "masks/", "--record-hard", "hard", "--cold", "9"],
}
WHOLE = "trained.safetensors"  # of a training that nothing interrupted
RESUMED = {"train": "out", "tune": "tuned"}  # and their folders


def call(words: list[str], folder: Path) -> int:
    """A child that does ``edge-mdeq WORDS``."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        quiet = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.argv = ["edge-mdeq", *words]
        from edge_mdeq.cli import main

        main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        os._exit(status)


def killed(words: list[str], folder: Path, after_s: float) -> bool:
    """Call a verb and kill it; whether that came before its end."""
    child = call(words, folder)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finish(words: list[str], folder: Path) -> float:
    """Call a verb to its end; the seconds that it took."""
    begin = time.monotonic()
    _, status = os.waitpid(call(words, folder), 0)
    said = (folder / "said").read_text()[-2000:]
    assert status == 0, f"{' '.join(words)} ended with status {status}: {said}"
    return time.monotonic() - begin


# What may be there after a kill, and what must be: what was there before, and all at the end


def bundle(name: str) -> Callable[[Path, bool], None]:
    def look(folder: Path, there: bool) -> None:
        from edge_mdeq.bundle import open_bundle

        if there or (folder / name).exists():
            open_bundle(folder / name, verify=True)

    return look


def weights(name: str) -> Callable[[Path, bool], None]:
    def look(folder: Path, there: bool) -> None:
        from edge_mdeq.weights import load_weights

        if there or (folder / name).exists():
            load_weights(folder / name)

    return look


def training(name: str, result: str, count: int) -> Callable[[Path, bool], None]:
    def look(folder: Path, there: bool) -> None:
        from edge_mdeq.training.checkpoint import load_checkpoint

        checkpoint, log = folder / name / "checkpoint.pt", folder / name / "log.jsonl"
        if checkpoint.exists():
            load_checkpoint(checkpoint)
        if there:
            epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
            assert epochs == list(range(1, count + 1)), epochs
        weights(f"{name}/{result}")(folder, there)

    return look


def trained(folder: Path, there: bool) -> None:
    from safetensors.torch import load_file

    training("out", "weights.safetensors", 6)(folder, there)
    if there:
        found, whole = load_file(folder / "out/weights.safetensors"), load_file(folder / WHOLE)
        assert all(bool((found[name] == whole[name]).all()) for name in whole), "other weights"


def engine(folder: Path, there: bool) -> None:
    from edge_mdeq.bundle import open_bundle
    from mdeq_runtime.tensorrt.engines import EngineStore
    from mdeq_runtime.tensorrt.identity import identify
    from mdeq_runtime.tensorrt.settings import BuildSettings
    from mdeq_runtime.tensorrt.versions import find_flavour

    opened, flavour = open_bundle(folder / "rtx.mdeq", verify=True), find_flavour(True)
    settings = BuildSettings(capabilities=("SM86",))
    identity = identify(flavour, opened.profile(flavour.profile), settings)
    store = EngineStore(opened, flavour.profile, identity)
    rungs = [rung.graph for rung in store.profile.rungs if rung.evaluations == 1]
    if there:
        assert store.find(rungs[0]).read_bytes()[:4] == b"vtrt"


def recording(folder: Path, there: bool) -> None:
    import cv2

    lines = folder / "r.jsonl"
    for line in lines.read_text().splitlines() if lines.exists() else ():
        json.loads(line)
    for path in [*folder.glob("masks/*.png"), *folder.glob("hard/[!.]*.png")]:
        assert cv2.imread(str(path)) is not None, path
    video = folder / "video.mp4"
    if there or video.exists():
        assert cv2.VideoCapture(str(video)).read()[0], "the video does not play"


LOOKS = {
    "import": weights("imported.safetensors"),
    "export": bundle("made.mdeq"),
    "unroll": bundle("base.mdeq"),
    "engine": engine,
    "train": trained,
    "tune": training("tuned", "weights.safetensors", 2),
    "run": recording,
}


def prepare(folder: Path) -> None:
    """Examples: a dataset, weights, a bundle, a checkpoint; and all imports."""
    import torch
    from conftest import save_tiny
    from tiny_data import write_camvid

    sys.path.insert(0, str(Path(__file__).parents[1] / "edge_mdeq"))
    from published import published_checkpoint

    from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance
    from mdeq_export import exporter

    exporter.VERIFICATION_IMAGES = 2  # eight would show no more
    write_camvid(folder / "data")
    (folder / "recipe.toml").write_text(RECIPE)
    config = ModelConfig("segmentation", 3, (8, 16), expansion=1, groups=8)
    card = ModelCard(config, InputConfig(32, 32), provenance=Provenance("tiny"))
    save_tiny(card, folder / "base.safetensors", 1)
    torch.save(published_checkpoint(config, "v2"), folder / "v2.pkl")
    from mdeq_export import ExportSettings, export_bundle

    export_bundle(
        folder / "base.safetensors", folder / "base.mdeq", ExportSettings(iterations=(1, 2))
    )
    shutil.copytree(folder / "base.mdeq", folder / "rtx.mdeq")
    manifest = json.loads((folder / "rtx.mdeq/manifest.json").read_text())
    manifest["profiles"]["tensorrt-rtx"] = manifest["profiles"]["ort-cpu"]
    (folder / "rtx.mdeq/manifest.json").write_text(json.dumps(manifest))
    finish(VERBS["train"], folder)
    for suffix in (".safetensors", ".json"):
        shutil.copy(folder / f"out/weights{suffix}", (folder / WHOLE).with_suffix(suffix))
    shutil.rmtree(folder / "out")


def kill_once(
    verb: str, master: Path, work: Path, seconds: float, rng: random.Random
) -> tuple[bool, str]:
    """One kill, a look, and the same verb again: whether it came in time, and what was wrong.

    If it came too late the verb was done, and that is all that is looked at.
    """
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(master, work)
    words, look = [*VERBS[verb], *MORE.get(verb, ())], LOOKS[verb]
    old = verb == "unroll"  # its bundle; twice it would have nothing to do
    if not old and verb not in RESUMED and rng.random() < 0.5:
        finish(words, work)
        old = True
    in_time = killed(words, work, rng.random() * seconds)
    try:
        look(work, old or not in_time)
        if not in_time:
            return False, ""
        if verb in RESUMED:
            resume(words, work / RESUMED[verb])
        else:
            finish(words, work)
        look(work, True)
        left = [str(p.relative_to(work)) for p in work.rglob(".*") if "data" not in p.parts]
        assert not left, f"the next run left {left}"
    except Exception as error:
        return in_time, f"{type(error).__name__}: {error}"
    return in_time, ""


def resume(words: list[str], out: Path) -> None:
    """Go on with a training: what it had done is not done again."""
    checkpoint, log = out / "checkpoint.pt", out / "log.jsonl"
    if not checkpoint.exists():
        finish(words, out.parent)
        return
    from edge_mdeq.training.checkpoint import load_checkpoint

    epochs = load_checkpoint(checkpoint)["epoch"]
    before = log.read_text().splitlines()[:epochs]
    finish([*words, "--resume"], out.parent)
    assert log.read_text().splitlines()[:epochs] == before, "epochs were done again"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verbs", nargs="*", metavar="VERB", help=", ".join(VERBS))
    parser.add_argument("--kills", type=int, default=50, help="in time, in all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    verbs, rng = arguments.verbs or list(VERBS), random.Random(arguments.seed)
    if "engine" in verbs and find_spec("tensorrt_rtx") is None:
        print("engine: left out, it needs the extra tensorrt-rtx")
        verbs.remove("engine")
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_STATE_HOME"] = f"{place}/state"
        master = Path(place, "master")
        master.mkdir()
        prepare(master)
        print(f"{'verb':<8} {'kills':>6} {'in time':>8} {'broken':>7}")
        for index, verb in enumerate(verbs):
            work = Path(place, verb)
            shutil.copytree(master, work)
            seconds = finish([*VERBS[verb], *MORE.get(verb, ())], work)
            kills = len(range(index, arguments.kills, len(verbs)))
            found: list[tuple[bool, str]] = []
            while sum(in_time for in_time, _ in found) < kills and len(found) < 4 * kills:
                found.append(kill_once(verb, master, work, seconds, rng))
            wrong = [f"{verb}: {what}" for _, what in found if what]
            in_time = sum(each for each, _ in found)
            print(f"{verb:<8} {len(found):>6} {in_time:>8} {len(wrong):>7}", flush=True)
            broken += wrong
    print("\n".join(broken) or "nothing broken")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
