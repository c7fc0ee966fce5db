"""``edge-mdeq run``: a source through a bundle into outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edge_mdeq.cli import inputs, outputs, service, showing
from edge_mdeq.cli.console import INTERRUPTED, next_step
from edge_mdeq.cli.sign import REQUIRE_SIGNATURE, required
from edge_mdeq.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from mdeq_runtime import Result, Session
    from mdeq_runtime.policies import Policy
    from mdeq_runtime.service.reload import ReloadableSession

__all__ = ["run"]


def run(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    source: str = typer.Argument(
        help="A video, images/*.jpg, a camera index, v4l2:///dev/videoN, csi://0, rtsp://, "
        "http://, gst://PIPELINE, test://."
    ),
    output: str = typer.Argument(
        None, help="annotated.mp4, results.jsonl, masks/, display://, http://0.0.0.0:8080"
    ),
    more: list[str] = typer.Option([], "--output", help="Further outputs; may be repeated."),
    iterations: int = typer.Option(
        None, min=1, help="Evaluations of f per frame, cold and warm alike."
    ),
    cold: int = typer.Option(None, min=1, help="... for a frame without a predecessor."),
    warm: int = typer.Option(
        None, min=0, help="... for a frame that starts from the last equilibrium; 0: never."
    ),
    tolerance: float = typer.Option(
        None,
        help="Residual at which a solve stops; with a fixed number of evaluations, at which it "
        "counts as converged.",
    ),
    deadline_ms: float = typer.Option(
        None, "--deadline-ms", help="Milliseconds a frame may take; a solve stops in time."
    ),
    target_ms: float = typer.Option(
        None,
        "--target-ms",
        help="Milliseconds that a frame should take, outputs included: evaluations are lowered "
        "before frames are dropped or the machine runs hot, and raised again.",
    ),
    max_iterations: int = typer.Option(
        None, min=1, help="Evaluations at most, with --tolerance or --deadline-ms; 26."
    ),
    precision: str = typer.Option(
        None,
        "--precision",
        help="fp32, int8 or refined (int8, then full precision); else what the export asked for.",
    ),
    fit: str = typer.Option("stretch", help="stretch, letterbox or crop."),
    confidence: bool = typer.Option(False, "--confidence", help="Compute a confidence map too."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or tensorrt."),
    threads: int = typer.Option(0, min=0, help="Threads per graph, 0 for one per core."),
    graph_cache: Path = typer.Option(
        None, "--graph-cache", help="A folder for graphs as this machine runs them: less memory."
    ),
    memory_limit: str = typer.Option(
        None,
        "--memory-limit",
        help="Of the whole process, such as 256MiB: what does not fit is refused, with what would.",
    ),
    require_signature: list[Path] = REQUIRE_SIGNATURE,
    metrics: Path = typer.Option(
        None, "--metrics", help="A file to append a JSON line of metrics to, now and then."
    ),
    metrics_every: float = typer.Option(
        10.0, "--metrics-every", help="Seconds between two such lines."
    ),
    input_width: int = inputs.WIDTH,
    input_height: int = inputs.HEIGHT,
    input_rate: float = inputs.RATE,
    input_codec: str = inputs.CODEC,
    input_flip: str = inputs.FLIP,
    input_exposure: int = inputs.EXPOSURE,
    input_sensor_mode: int = inputs.SENSOR_MODE,
    input_loop: int = inputs.LOOP,
    input_latency: int = inputs.LATENCY,
    input_transport: str = inputs.TRANSPORT,
    input_backend: str = inputs.BACKEND,
    input_buffer: str = inputs.BUFFER,
    input_wait: bool = inputs.WAIT,
    realtime: bool = inputs.REALTIME,
    classes: Path = outputs.CLASSES,
    colors: str = outputs.COLORS,
    record_hard: Path = outputs.RECORD_HARD,
    record_quota: str = outputs.RECORD_QUOTA,
    max_frames: int = typer.Option(None, "--max-frames", min=1, help="Stop after so many."),
    headless: bool = typer.Option(False, "--headless", help="Open no window."),
    reload_on_hup: bool = service.RELOAD_ON_HUP,
    log_format: str = service.LOG_FORMAT,
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Run a bundle on a camera, a video or images."""
    in_json = service.prepare(log_format)
    from mdeq_runtime import Model, SessionSettings
    from mdeq_runtime.memory import settled_objects
    from mdeq_runtime.metrics import Metrics
    from mdeq_runtime.pipeline import run as run_pipeline
    from mdeq_runtime.sinks.metrics import MetricsSink
    from mdeq_runtime.sources import open_source
    from mdeq_runtime.uris import redact

    asked = inputs.choose_options(
        width=input_width,
        height=input_height,
        rate=input_rate,
        codec=input_codec,
        flip=input_flip,
        exposure=input_exposure,
        sensor_mode=input_sensor_mode,
        loop=input_loop,
        latency=input_latency,
        transport=input_transport,
        backend=input_backend,
        realtime=realtime,
        wait=input_wait,
    )
    buffer = inputs.choose_buffer(input_buffer)
    targets = [*([output] if output else []), *more]
    if headless and any(outputs.is_window(target) for target in targets):
        raise ConfigError("--headless and a display:// output contradict each other; drop one")
    settings = SessionSettings(
        policy=choose_policy(iterations, cold, warm, tolerance, deadline_ms, max_iterations),
        carry=warm != 0,
        fit=fit,  # type: ignore[arg-type]  # checked by SessionSettings, with a message
        confidence=confidence,
        precision=precision,
    )
    with ExitStack() as stack:
        model = stack.enter_context(
            Model(
                bundle,
                settings,
                threads,
                graph_cache,
                device=device,
                memory_limit=memory_limit,
                require_signature=required(require_signature),
            )
        )
        opened = stack.enter_context(open_source(source, asked))
        drawn = outputs.choose_classes(model.manifest, classes, colors)
        sinks = outputs.open_sinks(stack, targets, opened, *drawn, record_hard, record_quota)
        if record_hard is not None:
            targets.append(str(record_hard))
        model.expect(opened, sinks)
        gathered = Metrics(model.backend)
        serving = service.Serving(gathered, reload_on_hup)
        session = serving.session_of(model, bundle)
        stack.enter_context(session)
        if metrics is not None:
            sinks.append(stack.enter_context(MetricsSink(metrics, gathered, metrics_every)))
            targets.append(str(metrics))
        showing.note(opened, model, targets, as_json, in_json)
        showing.name_pages(sinks, in_json)
        seen = stack.enter_context(showing.progress_bar(opened, as_json or in_json))
        stack.enter_context(settled_objects())
        stack.enter_context(serving.begin())
        summary = run_pipeline(
            session,
            opened,
            sinks,
            max_frames=max_frames,
            on_frame=serving.heartbeat.taken,
            on_result=serving.on_result(seen),
            policy=buffer,
            metrics=gathered,
            govern=choose_governor(session, target_ms),
        )
        memory = serving.memory(model)
    showing.report(summary, as_json, in_json, memory)
    if not summary.frames and not summary.interrupted:
        raise SourceError(f"{opened.description} delivered no frame")
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not as_json and not in_json:
        written = " and ".join(redact(target) for target in targets if target != "none")
        if written:
            typer.echo(f"wrote {written}")
        next_step("edge-mdeq", "run", str(bundle), redact(source), "display://")


def choose_policy(
    iterations: int | None,
    cold: int | None,
    warm: int | None,
    tolerance: float | None,
    deadline_ms: float | None,
    max_iterations: int | None,
) -> Policy:
    """When a solve stops, by the options.

    Raises:
        ConfigError: options that contradict each other, or a number that makes no sense.
    """
    from mdeq_runtime import FixedIterations, UntilDeadline, UntilTolerance

    if iterations is not None and (cold is not None or warm is not None):
        raise ConfigError("--iterations sets both --cold and --warm; give it or them")
    fixed = iterations is not None or cold is not None or bool(warm)
    if fixed and (deadline_ms is not None or max_iterations is not None):
        other = "--deadline-ms" if deadline_ms is not None else "--max-iterations"
        raise ConfigError(f"{other} contradicts a fixed number of evaluations; give one of them")
    limits: dict[str, Any] = {
        name: value
        for name, value in (("tol", tolerance), ("max_iterations", max_iterations))
        if value is not None
    }
    if deadline_ms is not None:
        return UntilDeadline(deadline_ms, **limits)
    if not fixed and limits:
        return UntilTolerance(**limits)
    if iterations is not None:
        return FixedIterations(iterations, **limits)
    return FixedIterations(warm or None, cold or 0, **limits)


def choose_governor(
    session: Session | ReloadableSession, target_ms: float | None
) -> Callable[[Result, float], None] | None:
    """A governor for the session, if there is a target.

    Raises:
        ConfigError: a target that makes no sense.
    """
    if target_ms is None:
        return None
    from mdeq_runtime.governor import Governor, GovernorSettings, governing

    return governing(Governor(GovernorSettings(target_ms), session.counts), session)
