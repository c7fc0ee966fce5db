"""A bundle over a folder or a table of videos, on all cores of a machine, with Ray Data.

python samples/batch_ray.py camvid-nano.mdeq recordings/ results/
python samples/batch_ray.py camvid-nano.mdeq drives.csv results/ --column path --workers 8

Each video is one item and one worker's, so that its frames keep starting from the last one's
equilibrium. An item's results appear as a whole, in ``results/NAME.jsonl``, or not at all: stop the
run in whatever way, and the same command goes on with the items that have none.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import glob
import io
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from batch_items import Item, list_items, size_of

import edge_mdeq
from edge_mdeq.bundle.reader import MANIFEST, hash_file
from edge_mdeq.cli.console import INTERRUPTED, quote
from edge_mdeq.cli.progress import counting_bar
from edge_mdeq.cli.signals import stop_by_signals
from edge_mdeq.errors import EdgeMdeqError, SinkError, require
from edge_mdeq.files import replacing, write_atomic
from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance
from mdeq_runtime.sinks.jsonl import describe
from mdeq_runtime.sources import open_source

RECORD = "batch.json"  # what the results in a folder are of
SUMMARY = "summary.csv"
ATTEMPTS = 3  # workers that may die at an item before it is given up
STORE = 80_000_000  # bytes for Ray's objects, of which each is a few hundred here; its minimum
ENVIRONMENT = {  # of this process and the workers, before Ray and ONNX Runtime are imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "http_proxy": "http://127.0.0.1:9",  # a closed door: Ray asks the network in which cloud it is
    "no_proxy": "127.0.0.1,localhost,::1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # ports for this machine only, on Linux as elsewhere
    "RAY_AUTH_MODE": "token",  # ... and none of its other users may have them run code
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_worker_niceness": "0",  # not behind everything else that runs here
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "OPENCV_LOG_LEVEL": "SILENT",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}


@dataclass(frozen=True)
class Outcome:
    """How an item went: why it failed, or ""; and what its video's reader warned of."""

    name: str
    failure: str
    warning: str
    deaths: int  # workers that died at it before


class Worker:
    """Answers items one after the other. Ray makes some, each in a process of its own.

    A worker that is killed leaves its temporary file, whose name starts as the results' does. Ray
    restarts it with the same item, for ever; by counting the files it is given up in the end.
    """

    def __init__(self, bundle: Path, settings: SessionSettings, threads: int, out: Path) -> None:
        require("cv2", "camera", "reading videos and images").setNumThreads(threads)
        self.model = Model(bundle, settings, threads)
        self.out = out
        self.warnings = Warnings()
        logging.getLogger("mdeq_runtime").addHandler(self.warnings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One row of an ``Item``'s fields to one row of its ``Outcome``'s."""
        item = Item(**{name: column.tolist()[0] for name, column in batch.items()})
        outcome = self.answer(item)
        return {name: [value] for name, value in asdict(outcome).items()}

    def answer(self, item: Item) -> Outcome:
        """Write an item's results; what goes wrong is its outcome, and the next one's turn."""
        path = results_of(item, self.out)
        deaths = len(remains(path))
        self.warnings.clear()
        failure = ""
        if deaths >= ATTEMPTS:
            failure = f"the worker died {deaths} times at it: of its decoder, or for want of memory"
        else:
            try:
                write_results(self.model, item, path)
            except (EdgeMdeqError, OSError) as error:
                failure = str(error)
            except Exception as error:  # one item must not end the others
                failure = f"{type(error).__name__}: {error}"
        return Outcome(item.name, failure, self.warnings.text, deaths)


class Warnings(logging.Handler):
    """Keeps what is logged, to be told with the item."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.clear()

    def clear(self) -> None:
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def text(self) -> str:
        return "; ".join(self.lines)


def write_results(model: Model, item: Item, path: Path) -> None:
    """A line per frame, as ``edge-mdeq run`` writes it but for the times.

    Without them an item's results are the same bytes whoever computed them, and when.

    Raises:
        EdgeMdeqError: the source cannot be read, or a frame not answered; nothing was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path, sweep=False) as temporary,  # what is left of dead workers counts them
        temporary.open("wb") as file,
        open_source(item.source) as source,
        model.session() as session,
    ):
        while (frame := source.read()) is not None and frame.index < item.end:
            if frame.index < item.first:
                continue  # decoded for nothing, but seeking is exact in few kinds of files
            entry = describe(session(frame), model.labels)
            del entry["times"]
            file.write(msgspec.json.encode(entry) + b"\n")


def results_of(item: Item, out: Path) -> Path:
    return out / f"{item.name}.jsonl"


def remains(path: Path) -> list[Path]:
    """What killed workers left of a results' file."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


def finished(item: Item, out: Path) -> bool:
    """Whether it has results, newer than what they were computed from."""
    path, source = results_of(item, out), Path(item.source)
    if not path.exists():
        return False
    files = [source, *source.iterdir()] if source.is_dir() else [source]
    changed = max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
    return changed <= path.stat().st_mtime_ns


@contextmanager
def claiming(out: Path, record: dict[str, Any]) -> Iterator[None]:
    """Hold a folder of results, for as long as this process lives.

    Raises:
        SinkError: another run holds it, it is of another kind, or of other settings.
    """
    path = out / RECORD
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise SinkError(f"{out} cannot be a folder of results: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkError(f"another run is writing to {out}; wait for it") from None
        if path.exists():
            try:
                found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                found = {}
            if differing := [name for name in record if found.get(name, "") != record[name]]:
                raise SinkError(
                    f"the results in {out} are of another {' and '.join(differing)}; name another "
                    "folder, or remove this one"
                )
        elif any(not file.name.startswith(".") for file in out.iterdir()):
            raise SinkError(f"{out} holds other files than a batch's; name a new folder")
        else:
            write_atomic(path, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        yield
    finally:
        os.close(handle)


@contextmanager
def local_cluster(workers: int, threads: int) -> Iterator[Any]:
    """Ray on this machine alone, for as long as the block lasts; yields ``ray.data``."""
    import ray
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    # Sessions of Ray stay under /tmp for ever; those here go. Its sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="mdeq-", ignore_cleanup_errors=True) as folder:
        try:
            ray.init(
                address="local",
                num_cpus=workers * threads,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
            stop_by_signals()  # instead of Ray's way, which is to fall over
            yield data
        finally:
            ray.shutdown()


def run(items: Sequence[Item], args: argparse.Namespace) -> Iterator[Outcome]:
    """Outcomes as they come, in any order."""
    if not items:
        return
    made_with = (args.bundle.resolve(), settings_of(args), args.threads, args.out.resolve())
    workers = min(args.workers, len(items))
    longest_first = sorted(items, key=lambda item: -size_of(Path(item.source)))
    with local_cluster(workers, args.threads) as data:
        outcomes = data.from_items(
            [asdict(item) for item in longest_first], override_num_blocks=len(items)
        ).map_batches(
            Worker,
            fn_constructor_args=made_with,
            batch_size=1,
            num_cpus=args.threads,
            # one at a time: none waits behind a long one while another worker is idle
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        )
        for batch in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
            columns = {name: column.tolist() for name, column in batch.items()}
            for values in zip(*columns.values(), strict=True):
                yield Outcome(**dict(zip(columns, values, strict=True)))


def settings_of(args: argparse.Namespace) -> SessionSettings:
    """How sessions solve, by the options."""
    if args.tolerance is not None:
        return SessionSettings(UntilTolerance(args.tolerance))
    return SessionSettings(FixedIterations(args.iterations))


def summarise(items: Sequence[Item], outcomes: dict[str, Outcome], out: Path) -> list[list[Any]]:
    """Write the summary, a row per item; gives the rows.

    The figures are read from the results, so that those of earlier runs are in it; what such a run
    warned of is kept from its summary.
    """
    path = out / SUMMARY
    notes = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            notes = {row.get("item"): row.get("note", "") for row in csv.DictReader(file)}
    header = ["item", "source", "status", "frames", "iterations", "residual", "warm", "note"]
    rows: list[list[Any]] = []
    for item in items:
        outcome = outcomes.get(item.name)
        if outcome and outcome.failure:
            rows.append([item.name, item.source, "failed", 0, "", "", "", outcome.failure])
        elif outcome or finished(item, out):
            note = outcome.warning if outcome else notes.get(item.name, "")
            rows.append([item.name, item.source, "done", *figures(results_of(item, out)), note])
        else:
            rows.append([item.name, item.source, "waiting", 0, "", "", "", ""])
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    write_atomic(path, table.getvalue().encode())
    return rows


def figures(path: Path) -> list[Any]:
    """Frames, mean evaluations a frame, mean residual and share of warm starts of some results."""
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    means = [
        f"{sum(line[name] for line in lines) / len(lines):.4f}" if lines else ""
        for name in ("iterations", "residual", "warm")
    ]
    return [len(lines), *means]


def parse() -> argparse.Namespace:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="NAME.mdeq")
    parser.add_argument("source", type=Path, help="a folder, or a .csv table of paths")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--column", default="video", help="of the table; video")
    parser.add_argument("--workers", type=positive, default=cores, help="processes; one per core")
    parser.add_argument("--threads", type=positive, default=1, help="of each worker; 1")
    parser.add_argument(
        "--segment",
        type=positive,
        metavar="SECONDS",
        help="split videos, for fewer videos than cores: each part starts cold",
    )
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--iterations", type=positive, help="evaluations of f per frame")
    policy.add_argument("--tolerance", type=float, help="residual at which a frame's solve stops")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def main() -> int:
    """List the items, answer those without results, sum up; gives the exit status."""
    args = parse()
    os.environ.update(ENVIRONMENT, OPENCV_FFMPEG_THREADS=str(args.threads))
    items = list_items(args.source, args.column, args.segment)
    settings = settings_of(args)
    with edge_mdeq.load(args.bundle, settings=settings) as model:
        model.session().close()  # what would fail for every item fails here, at once
    require("ray.data", "batch", "running a batch")
    bundle = hash_file(args.bundle / MANIFEST)
    record = {"bundle": bundle, "policy": str(settings.policy), "segment": args.segment}
    out = args.out
    outcomes: dict[str, Outcome] = {}
    interrupted = False
    with claiming(out, record):
        remove_remains(items, out)
        waiting = [item for item in items if not finished(item, out)]
        before = len(items) - len(waiting)
        try:
            for outcome in showing(run(waiting, args), len(items), before):
                outcomes[outcome.name] = outcome
        except KeyboardInterrupt:
            interrupted = True
        finally:
            remove_remains(items, out)
            rows = summarise(items, outcomes, out)
    return report(rows, before, args, interrupted)


def remove_remains(items: Sequence[Item], out: Path) -> None:
    """Remove what killed workers left, of this run or of one before."""
    for item in items:
        for file in remains(results_of(item, out)):
            file.unlink()


def showing(outcomes: Iterable[Outcome], total: int, before: int) -> Iterator[Outcome]:
    """Pass outcomes on; what is wrong with one is told at once, and a terminal has a bar."""
    with counting_bar("items", quiet=False) as show:
        show(before, total)
        for count, outcome in enumerate(outcomes, before + 1):
            if outcome.deaths and not outcome.failure:
                print(f"{outcome.name}: its worker died, it was done again", file=sys.stderr)
            if outcome.warning:
                print(f"{outcome.name}: warning: {outcome.warning}", file=sys.stderr)
            if outcome.failure:
                print(f"{outcome.name}: failed: {outcome.failure}", file=sys.stderr)
            show(count, total)
            yield outcome


def report(
    rows: Sequence[Sequence[Any]], before: int, args: argparse.Namespace, interrupted: bool
) -> int:
    """Say how it went and what to do next; gives the exit status."""
    done = [row for row in rows if row[2] == "done"]
    failed = sum(row[2] == "failed" for row in rows)
    print(f"{len(done)} of {len(rows)} items done, {before} of them before; {failed} failed")
    print(f"wrote {args.out / SUMMARY}")
    if interrupted:
        print("interrupted; the same command goes on")
        return INTERRUPTED
    if failed:
        print("next: mend or remove what failed, and give the same command again")
        return 1
    worst = max(done, key=lambda row: float(row[5] or 0))
    command = quote("edge-mdeq", "run", str(args.bundle), worst[1], "annotated.mp4")
    print(f"next: {command}   (its residual is the highest)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeMdeqError as error:
        sys.exit(f"error: {error}")
