"""Mean IoU of a segmentation model by evaluations, cold and warm (frames in order), by torch.

    python benchmarks/segmentation_quality.py --data CamVid [--weights samples/models/camvid-nano]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_mdeq.training.data import SegmentationFolder
from edge_mdeq.training.evaluate import evaluate
from edge_mdeq.weights import load_weights


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("samples/models/camvid-nano"))
    parser.add_argument("--ignore", type=int, nargs="*", default=[11])
    parser.add_argument("--iterations", type=int, nargs="*", default=[1, 2, 3, 4, 8, 16])
    args = parser.parse_args()
    model, card = load_weights(args.weights)
    size = (card.input.height, card.input.width)
    data = SegmentationFolder(args.data, "val", card.model.classes, args.ignore, size)
    print("evaluations  mIoU cold  residual  mIoU warm  residual")
    for count in args.iterations:
        cold = evaluate(model, data, card.input, count)
        warm = evaluate(model, data, card.input, count, warm=True)
        print(
            f"{count:11}  {cold.miou:9.4f}  {cold.residual:8.4f}  {warm.miou:9.4f}  "
            f"{warm.residual:8.4f}"
        )


if __name__ == "__main__":
    main()
