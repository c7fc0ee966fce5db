"""Mean IoU of a segmentation model by evaluations, cold and warm (frames in order), by torch.

python benchmarks/segmentation_quality.py --data CamVid [--weights samples/models/camvid-nano]
                                            [--plot docs/images/iterations.svg]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edge_mdeq.datasets import SegmentationFolder
from edge_mdeq.training.evaluate import evaluate
from edge_mdeq.weights import load_weights


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("samples/models/camvid-nano"))
    parser.add_argument("--ignore", type=int, nargs="*", default=[11])
    parser.add_argument("--iterations", type=int, nargs="*", default=[1, 2, 3, 4, 8, 16])
    parser.add_argument("--plot", type=Path, help="draw the two curves into this file")
    args = parser.parse_args()
    model, card = load_weights(args.weights)
    size = (card.input.height, card.input.width)
    data = SegmentationFolder(args.data, "val", card.model.classes, args.ignore, size)
    scores = []
    print("evaluations  mIoU cold  residual  mIoU warm  residual")
    for count in args.iterations:
        cold = evaluate(model, data, card.input, count)
        warm = evaluate(model, data, card.input, count, warm=True)
        scores.append((cold.miou, warm.miou))
        print(
            f"{count:11}  {cold.miou:9.4f}  {cold.residual:8.4f}  {warm.miou:9.4f}  "
            f"{warm.residual:8.4f}"
        )
    if args.plot:
        plot(args.plot, args.iterations, scores)


def plot(path: Path, counts: Sequence[int], scores: Sequence[tuple[float, float]]) -> None:
    """Both curves over the number of evaluations."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    cold, warm = zip(*scores, strict=True)
    axes.plot(counts, warm, "o-", color="#0072b2", label="warm: from the last frame's equilibrium")
    axes.plot(counts, cold, "o-", color="#d55e00", label="cold: from zero")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("evaluations of f per frame")
    axes.set_ylabel("mean IoU, CamVid val")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
