"""``edge-mdeq engine``: TensorRT engines for this device, or ahead of time for RTX."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.cli.run import choose_policy
from edge_mdeq.cli.sign import REQUIRE_SIGNATURE, required
from edge_mdeq.cli.signals import stop_by_signals
from edge_mdeq.errors import ConfigError

if TYPE_CHECKING:
    from mdeq_runtime.policies import Policy
    from mdeq_runtime.tensorrt.child import Event
    from mdeq_runtime.tensorrt.engines import EngineStore
    from mdeq_runtime.tensorrt.records import EngineRecord

__all__ = ["engine"]

MIB = 2**20


def engine(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    iterations: int = typer.Option(
        None, min=1, help="Only what a run with so many evaluations a frame needs."
    ),
    cold: int = typer.Option(None, min=1, help="... for a frame without a predecessor."),
    warm: int = typer.Option(None, min=0, help="... for a frame that has one; 0: never."),
    in_parts: bool = typer.Option(
        False, "--in-parts", help="Only what --tolerance and --deadline-ms of a run need."
    ),
    everything: bool = typer.Option(False, "--all", help="Every graph of the profile."),
    half: bool = typer.Option(
        False, "--half", help="FP16: a flag for TensorRT 8.6, for others a bundle exported so."
    ),
    rtx: bool = typer.Option(False, "--rtx", help="TensorRT for RTX, if both are installed."),
    capability: list[str] = typer.Option(
        [],
        "--compute-capability",
        help="For RTX: SM75, SM80, SM86, SM89, SM120 or SM121; without a GPU, for another machine. "
        "May be repeated.",
    ),
    workspace: str = typer.Option(
        "256MiB", help="Device memory that a layer may use while it is timed and run."
    ),
    memory_limit: str = typer.Option(
        None, "--memory-limit", help="Of the build: beyond it, it is stopped. Such as 1GiB."
    ),
    niceness: int = typer.Option(10, min=0, max=19, help="Of the build."),
    level: int = typer.Option(None, min=0, max=5, help="Builder optimisation level."),
    compatibility: str = typer.Option(
        None,
        "--hardware-compatibility",
        help="ampere_plus or same_compute_capability: engines for other GPUs too.",
    ),
    version_compatible: bool = typer.Option(
        False, "--version-compatible", help="Engines for later versions of the same major too."
    ),
    stream_weights: bool = typer.Option(
        False, "--stream-weights", help="Let weights stay with the host where memory is short."
    ),
    batch: tuple[int, int, int] = typer.Option(
        (1, 1, 1), help="Least, usual and most images, for a bundle exported with --dynamic-batch."
    ),
    timing_cache: Path = typer.Option(
        None, "--timing-cache", help="A file to keep timings of layers in; else beside the engines."
    ),
    cache: Path = typer.Option(None, help="A folder for engines, instead of the bundle."),
    require_signature: list[Path] = REQUIRE_SIGNATURE,
    force: bool = typer.Option(False, "--force", help="Build what is there already, too."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Build TensorRT engines of a bundle for this device."""
    from edge_mdeq.bundle import open_bundle
    from edge_mdeq.bundle.precision import chosen
    from mdeq_runtime.planner import parse_bytes
    from mdeq_runtime.policies import UntilTolerance
    from mdeq_runtime.tensorrt.engines import EngineStore
    from mdeq_runtime.tensorrt.identity import identify
    from mdeq_runtime.tensorrt.settings import (
        BuildSettings,
        in_fp16,
        needed,
        smallest_first,
    )
    from mdeq_runtime.tensorrt.versions import find_flavour
    from mdeq_runtime.tensorrt.workshop import Workshop

    opened = open_bundle(bundle, require_signature=required(require_signature))
    if timing_cache is not None and not is_place_for(timing_cache):
        raise ConfigError(f"--timing-cache {timing_cache} names no file in a folder that is there")
    flavour = find_flavour(True if rtx or capability else None)
    names = tuple(name.upper() for name in capability)
    for name in names:
        flavour.capability(name)  # says so before anything is built
    profile = opened.profile(flavour.profile)
    settings = BuildSettings(
        half=in_fp16(flavour, profile, half),
        workspace=parse_bytes(workspace),
        level=level,
        capabilities=names,
        compatibility=compatibility,
        version_compatible=version_compatible,
        stream_weights=stream_weights,
        batch=batch,
    )
    counted = iterations is not None or cold is not None or warm is not None
    if everything:
        if counted or in_parts:
            raise ConfigError("--all builds every graph; leave out what chooses some of them")
        graphs = smallest_first(profile, profile.graphs)
    else:
        policies = wanted(in_parts, counted, iterations, cold, warm)
        usual = chosen(profile, None, opened.manifest.precision, opened.manifest.name)
        graphs = needed(usual, policies, warm != 0)
    store = EngineStore(opened, flavour.profile, identify(flavour, profile, settings), cache)
    store.tidy()
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    stop_by_signals()
    with progress_bar(quiet) as report:
        workshop = Workshop(store, flavour.rtx, settings, limit, niceness, timing_cache, report)
        for graph in graphs:
            if not force and store.has(graph):
                typer.echo(f"{Path(graph).stem}: is there, and fits; --force builds it anew")
                continue
            tell(store, workshop.build(graph), flavour.name)
    if capability:
        typer.echo(f"copy {bundle} to the machine with the GPU; there:")
    options = {"--iterations": iterations, "--cold": cold, "--warm": warm, "--graph-cache": cache}
    if in_parts and not counted:
        options["--tolerance"] = f"{UntilTolerance().tol:g}"
    given = [(option, str(value)) for option, value in options.items() if value is not None]
    next_step(
        "edge-mdeq", "run", str(bundle), "0", "--device", "tensorrt", *itertools.chain(*given)
    )


def is_place_for(file: Path) -> bool:
    """Whether a file can be where one is named; to find that after minutes would be late."""
    return file.absolute().parent.is_dir() and not file.is_dir()


def wanted(
    in_parts: bool, counted: bool, iterations: int | None, cold: int | None, warm: int | None
) -> list[Policy]:
    """The policies that engines are for: those that are named, else a run's default and parts."""
    from mdeq_runtime.policies import UntilTolerance

    policies: list[Policy] = []
    if counted or not in_parts:
        policies.append(choose_policy(iterations, cold, warm, None, None, None))
    if in_parts or not counted:
        policies.append(UntilTolerance())
    return policies


def tell(store: EngineStore, record: EngineRecord, by: str) -> None:
    """An engine in numbers."""
    took, name = record.measured, Path(record.graph).stem
    typer.echo(
        f"{name}: {record.bytes / 1e6:.1f} MB in {took['seconds']:.1f} s by {by}, "
        f"for {store.identity.device or 'compute capability ' + store.identity.capability}; the "
        f"build took {took['peak_bytes'] / MIB:.0f} MiB for {took['layers']:.0f} layers"
    )


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, Event], None]]:
    """A bar per build with its phase and time; TensorRT's complaints are for its errors only."""
    if quiet or not sys.stderr.isatty():
        yield lambda graph, event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[phase]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(graph: str, event: Event) -> None:
            if graph not in tasks:
                tasks[graph] = bar.add_task(Path(graph).stem, total=1.0, phase="")
            if event.kind == "progress":
                bar.update(tasks[graph], completed=event.done, phase=event.text)
            elif event.kind == "built":
                bar.remove_task(tasks[graph])

        yield show
