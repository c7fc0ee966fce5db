"""What one training step keeps for its backward pass, and its peak: MDEQ, ResNet and DenseNet.

python benchmarks/training_memory.py [--json FILE] [--plot docs/images/training_memory.svg]

Kept: every tensor that is alive after forward pass and loss and was not before, each storage
counted once: what autograd saved (``saved_tensors_hooks`` shows it) and what closures hold, such as
the one that solves the backward system. Parameters, buffers, the images and their classes are not
in it, they exist before. Kernels that weight norm derives are kept too and stand in a column of
their own: they grow with the model and not with the batch or the image.

Peak: VmHWM of a fresh process through forward pass, backward pass and optimizer step (SGD with
momentum), above what it held with torch warmed up and only the images there. "At least" is what
the count predicts: weights, momentum, and the larger of what is kept and the gradients. The rest is
workspaces of convolutions, gradients that are there already, and the solver's own vectors.

MDEQ solves for its equilibrium untracked and differentiates implicitly; "recomputed" sets
``cell.recompute``. A fixed-point solver holds no past iterates, Anderson and Broyden do: --solver.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from peers import densenet121, resnet
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from edge_mdeq.config import ModelConfig
from edge_mdeq.gradients import implicit
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup
from edge_mdeq.solvers import make_solver, solve

REFERENCE = "ResNet-101"
CLAIM = 0.4  # "more than 60% less"
LIMITS = {"MDEQ-small": 0.30, "MDEQ-large, recomputed": 0.45}  # of the reference


def mdeq(config: ModelConfig, recompute: bool = False) -> MDEQ:
    """A model as it is trained."""
    model = MDEQ(config).train()
    model.cell.recompute = recompute
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: resnet(50),
    "ResNet-101": lambda: resnet(101),
    "DenseNet-121": densenet121,
    "MDEQ-small": lambda: mdeq(lookup("imagenet-small").model),
    "MDEQ-small, recomputed": lambda: mdeq(lookup("imagenet-small").model, recompute=True),
    "MDEQ-large": lambda: mdeq(lookup("imagenet-large").model),
    "MDEQ-large, recomputed": lambda: mdeq(lookup("imagenet-large").model, recompute=True),
}


@dataclass(frozen=True)
class Batch:
    """Random images (B, 3, H, W) and their classes (B,)."""

    image: Tensor
    target: Tensor

    @classmethod
    def make(cls, batch: int, size: int, device: str = "cpu") -> Batch:
        return cls(
            torch.randn(batch, 3, size, size, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )


@dataclass(frozen=True)
class Kept:
    """Bytes alive for the backward pass: activations, and the kernels weight norm derived."""

    activations: int
    kernels: int

    @property
    def all(self) -> int:
        return self.activations + self.kernels


@dataclass
class Row:
    """One network: ``kept`` by solver iterations (the same for networks without a solver)."""

    name: str
    parameter_bytes: int
    kept: dict[int, Kept] = field(default_factory=dict)
    peak_bytes: int = 0
    step_seconds: float = 0.0

    def least_peak(self) -> int:
        """Weights and momentum, and what is kept (backward starts) or all gradients (it ends)."""
        kept = next(iter(self.kept.values())).all
        return 2 * self.parameter_bytes + max(kept, self.parameter_bytes)


def loss_of(model: nn.Module, batch: Batch, solver: str, iterations: int) -> Tensor:
    """Forward pass and loss of one training step; the backward solve gets as many iterations."""
    if not isinstance(model, MDEQ):
        return F.cross_entropy(model(batch.image), batch.target)
    u = model.inject(batch.image)
    f = model.bind(u)
    with torch.no_grad():
        z = solve(f, model.zero_state(u), make_solver(solver), iterations).value
    z = implicit(f, z, make_solver(solver), iterations, tol=0.0)
    return F.cross_entropy(model.readout(z), batch.target)


class Saved:
    """What autograd saved, put where Python, and so the garbage collector, knows of it."""

    def __init__(self, tensor: Tensor, is_kernel: bool) -> None:
        self.tensor = tensor.detach()  # the tensor itself could be its own graph's output: a cycle
        self.is_kernel = is_kernel


def storage_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in; views share it. Works for the meta device too."""
    return tensor.untyped_storage()._cdata


def alive() -> dict[int, int]:
    """Bytes of every storage that some tensor known to Python lies in."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return {storage_of(x): x.untyped_storage().nbytes() for x in tensors}


@contextmanager
def derived_kernels(model: nn.Module) -> Iterator[set[int]]:
    """The storages of the kernels that ``model`` derives in this block, while they are alive."""
    found: set[int] = set()
    if not isinstance(model, MDEQ):
        yield found
        return
    derive = model.cell.kernels

    def recorded() -> list[Tensor]:
        kernels = derive()
        found.update(storage_of(kernel) for kernel in kernels)
        return kernels

    model.cell.kernels = recorded  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del model.cell.kernels  # the method shows again


def count_kept(model: nn.Module, forward: Callable[[], Tensor]) -> Kept:
    """Run ``forward`` and count what is alive for the backward pass of its result.

    Args:
        model: whose kernels are told apart.
        forward: returns a loss; it must keep ``model``'s kernels until it returns, so that no
            other tensor gets their place.
    """
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Saved:
        entry = Saved(tensor, storage_of(tensor) in kernels)
        saved.add(entry)
        return entry

    before = alive()
    with (
        derived_kernels(model) as kernels,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry.tensor),
    ):
        loss = forward()
    after = {storage: n for storage, n in alive().items() if storage not in before}
    del after[storage_of(loss)]
    of_kernels = {storage_of(entry.tensor) for entry in saved if entry.is_kernel}
    in_kernels = sum(n for storage, n in after.items() if storage in of_kernels)
    return Kept(sum(after.values()) - in_kernels, in_kernels)


def measure_step(model: nn.Module, batch: Batch, solver: str, iterations: int) -> float:
    """One training step as any but the first: momentum is there already. Returns seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    started = time.monotonic()
    loss_of(model, batch, solver, iterations).backward()
    optimizer.step()
    return time.monotonic() - started


def status_bytes(key: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def child(name: str, args: argparse.Namespace) -> None:
    """In a fresh process: one step of one network; prints its peak above the start as JSON."""
    warm = mdeq(lookup("cifar-tiny").model)
    measure_step(warm, Batch.make(1, 32), args.solver, 2)
    del warm
    gc.collect()
    batch = Batch.make(args.batch, args.size)
    base = status_bytes("VmRSS")
    seconds = measure_step(NETWORKS[name](), batch, args.solver, min(args.iterations))
    print(json.dumps({"peak_bytes": status_bytes("VmHWM") - base, "step_seconds": seconds}))


def count(name: str, args: argparse.Namespace) -> Row:
    """Count in this process what one network keeps, by iterations."""
    model = NETWORKS[name]()
    row = Row(name, sum(p.nbytes for p in model.parameters()))
    batch = Batch.make(args.batch, args.size)
    for iterations in args.iterations:
        forward = partial(loss_of, model, batch, args.solver, iterations)
        row.kept[iterations] = count_kept(model, forward)
        if not isinstance(model, MDEQ):  # nothing iterates
            row.kept = dict.fromkeys(args.iterations, row.kept[iterations])
            break
    return row


def measure_peak(row: Row, args: argparse.Namespace) -> None:
    """Have a process of its own take one step."""
    command = [sys.executable, __file__, "--child", row.name, "--solver", args.solver]
    command += ["--batch", str(args.batch), "--size", str(args.size)]
    command += ["--iterations", str(min(args.iterations))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    row.peak_bytes, row.step_seconds = result["peak_bytes"], result["step_seconds"]


def show(rows: dict[str, Row], args: argparse.Namespace, console: Console) -> None:
    """The table, the limits that were set, and the published claim, also where it fails."""
    first, last = min(args.iterations), max(args.iterations)
    reference = rows[REFERENCE].kept[first]
    table = Table(
        title=f"One training step, batch {args.batch}, {args.size} x {args.size}, fp32; MB = 1e6 B"
    )
    table.add_column("network", no_wrap=True)
    for heading in (
        *("params M", f"kept, {first} it.", f"kept, {last} it.", "kernels", f"of {REFERENCE}"),
        *("with kernels", "peak", "at least"),
    ):
        table.add_column(heading, justify="right")
    for row in rows.values():
        kept = row.kept[first]
        table.add_row(
            row.name,
            f"{row.parameter_bytes / 4e6:.1f}",
            f"{kept.activations / 1e6:.1f}",
            f"{row.kept[last].activations / 1e6:.1f}",
            f"{kept.kernels / 1e6:.1f}",
            f"{kept.activations / reference.all:.1%}",
            f"{kept.all / reference.all:.1%}",
            f"{row.peak_bytes / 1e6:.0f}" if row.peak_bytes else "-",
            f"{row.least_peak() / 1e6:.0f}",
        )
    console.print(table)
    for name, limit in LIMITS.items():
        if name in rows:
            share = rows[name].kept[first].activations / reference.all
            verdict = "holds" if share <= limit else "DOES NOT HOLD"
            console.print(
                f"{name} keeps {share:.1%} of {REFERENCE}'s, limit {limit:.0%}: {verdict}"
            )
    peers = [row for row in rows.values() if not row.name.startswith("MDEQ")]
    for row in rows.values():
        if row in peers:
            continue
        change = abs(row.kept[last].all / row.kept[first].all - 1)
        console.print(f"{row.name}: {first} to {last} iterations change it by {change:.2%}")
        for what, size_of in (
            ("activations", lambda row: row.kept[first].activations),
            ("with kernels", lambda row: row.kept[first].all),
            ("peak", lambda row: row.peak_bytes),
        ):
            if not size_of(row):
                continue  # peaks were not measured
            shares = {peer.name: size_of(row) / size_of(peer) for peer in peers}
            verdicts = [
                f"{share:.0%} of {name}'s ({'yes' if share <= CLAIM else 'NO'})"
                for name, share in shares.items()
            ]
            console.print(f"  60% less? {what}: {', '.join(verdicts)}")


def plot(path: Path, rows: dict[str, Row], args: argparse.Namespace) -> None:
    """What is kept as bars, the peak above the weights as a mark."""
    import matplotlib.pyplot as plt

    names, first = list(rows), min(args.iterations)
    activations = [row.kept[first].activations / 1e6 for row in rows.values()]
    kernels = [row.kept[first].kernels / 1e6 for row in rows.values()]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.barh(names, activations, color="#0072b2", label="activations kept")
    axes.barh(names, kernels, left=activations, color="#e69f00", label="derived kernels kept")
    peaks = [row.peak_bytes / 1e6 for row in rows.values()]
    if all(peaks):
        axes.plot(peaks, names, "|", color="black", markersize=14, label="peak of the step")
    claim = CLAIM * rows[REFERENCE].kept[first].all / 1e6
    axes.axvline(
        claim, color="#d55e00", linestyle="--", label=f"{CLAIM:.0%} of what {REFERENCE} keeps"
    )
    axes.invert_yaxis()
    axes.set_xlabel(f"MB, one training step of {args.batch} images, {args.size} x {args.size}")
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    axes.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "training_memory"  # the same numbers give the same file
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure every network and show the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--iterations", type=int, nargs="+", default=[4, 40])
    parser.add_argument("--solver", default="fixed_point")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--no-peak", action="store_true", help="count only")
    parser.add_argument("--json", type=Path, help="write the numbers into this file")
    parser.add_argument("--plot", type=Path, help="draw the bars into this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.child:
        child(args.child, args)
        return
    console = Console(width=max(120, Console().width), highlight=False)
    rows: dict[str, Row] = {}
    for name in dict.fromkeys([REFERENCE, *args.networks]):
        console.print(f"measuring {name}")
        rows[name] = count(name, args)
        if not args.no_peak:
            measure_peak(rows[name], args)
    rows = {name: rows[name] for name in NETWORKS if name in rows}
    show(rows, args, console)
    if args.json:
        settings = {"batch": args.batch, "size": args.size, "solver": args.solver}
        settings |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        numbers = {"settings": settings, "rows": [asdict(row) for row in rows.values()]}
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    if args.plot:
        plot(args.plot, rows, args)


if __name__ == "__main__":
    main()
