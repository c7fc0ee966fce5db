"""The readouts as a graph holds them: a state to the answer and how sure it is.

A mask is upsampled twice, from the coarser scales to the finest and from there to the image. Done
at once, at 1024 x 2048 pixels the hidden layer of cityscapes-xl takes 692 MB and the logits of 19
classes 159 MB, beside states of 87 MB. ``TiledReadMask`` takes rows of the mask at a time instead.
Three facts make that cheap:

- bilinear upsampling is separable, and a row of its result is a mix of two rows below it;
- it commutes with a 1x1 convolution, so a scale can be convolved before its columns are upsampled;
- every tile is a chain of its own, and runtimes that go depth first finish one before the next.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_mdeq.config import ModelConfig
from edge_mdeq.model import MDEQ, State

__all__ = ["ReadMask", "ReadScores", "TiledReadMask", "count_tiles"]

FLOOR = 8_000_000  # bytes, below which tiles would save nothing that matters
FLOAT = 4  # bytes
# Channels up to which scale 1 is upsampled before it is convolved, together with scale 0: measured
# in ONNX Runtime that takes as long (camvid-nano, cityscapes-small), and a tile then holds one
# tensor of the hidden layer's size less. From scale 2 on it is slower.
NARROW = 64


class ReadScores(nn.Module):
    """State to class probabilities (B, classes)."""

    def __init__(self, model: MDEQ) -> None:
        super().__init__()
        self.readout = model.readout

    def forward(self, z: State) -> Tensor:
        return torch.softmax(self.readout(z), dim=1)


class ReadMask(nn.Module):
    """State to a mask (B, H, W) uint8 and the confidence (B, H_0, W_0) of its classes.

    The confidence stays at the readout's resolution: whoever wants it larger interpolates one map,
    not one per class. This is the definition; graphs hold ``TiledReadMask``, which equals it.
    """

    def __init__(self, model: MDEQ, height: int, width: int) -> None:
        super().__init__()
        self.readout = model.readout
        self.size = (height, width)

    def forward(self, z: State) -> tuple[Tensor, Tensor]:
        logits = self.readout(z)  # (B, classes, H_0, W_0)
        confidence = torch.softmax(logits, dim=1).amax(dim=1)
        full = F.interpolate(logits, size=self.size, mode="bilinear", align_corners=True)
        return full.argmax(dim=1).to(torch.uint8), confidence


def count_tiles(config: ModelConfig, height: int, width: int) -> int:
    """The fewest tiles of which none needs a tensor larger than all states together, or than 8 MB.

    The two that can be the largest are the hidden layer, S channels at scale 0 where S is the sum
    of the states' channels, and the logits at the image's size. With channels that double from
    scale to scale the hidden layer is larger than the states by a factor that no image size
    changes, 8 for four scales. While a tile's scales are added up, three to four tensors of its
    hidden layer's size are held. All sizes are those of one image; a batch scales them alike. What
    is joined at the end, the mask in floats, is not counted: four bytes a pixel, at 1/4 of the
    resolution as much as a state of 16 channels.

    Args:
        config: of a segmentation model.
        height: of the image, in pixels; a multiple of the model's stride, as is ``width``.
        width: of the image.
    """
    shapes = config.state_shapes(1, height, width)
    rows, columns = shapes[0][2:]
    states = sum(FLOAT * c * h * w for _, c, h, w in shapes)
    hidden_row = FLOAT * sum(config.channels) * columns
    logits_row = FLOAT * config.classes * (height // rows) * width
    for tiles in range(1, rows):
        tallest = -(-rows // tiles)
        overlap = 2 if tiles > 1 else 0  # a neighbour's row on each side, see Tile
        largest = max((tallest + overlap) * hidden_row, tallest * logits_row)
        if largest <= max(states, FLOOR):
            return tiles
    return rows


class TiledReadMask(nn.Module):
    """``ReadMask`` in tiles of rows, the first convolution before the upsampling.

    Args:
        model: a segmentation model from ``MDEQ.freeze()``.
        height: of the mask, H; a multiple of the model's stride, as is ``width``.
        width: of the mask, W.
        tiles: how many; None lets ``count_tiles`` decide.

    Raises:
        ConfigError: the size is not a multiple of the model's stride.
        ValueError: the model is not frozen, or there are more tiles than rows of scale 0.
    """

    def __init__(self, model: MDEQ, height: int, width: int, tiles: int | None = None) -> None:
        super().__init__()
        layers = model.readout.last
        assert isinstance(layers, nn.Sequential)
        first, norm, _, self.last = layers
        if not isinstance(norm, nn.Identity):
            raise ValueError("a tiled readout takes a frozen model: call model.freeze() first")
        shapes = model.config.state_shapes(1, height, width)
        heights = [shape[2] for shape in shapes]
        count = count_tiles(model.config, height, width) if tiles is None else tiles
        if not 1 <= count <= heights[0]:
            raise ValueError(f"{count} tiles of {heights[0]} rows")
        edges = [heights[0] * k // count for k in range(count + 1)]
        self.tiles = nn.ModuleList(Tile(heights, height, *edge) for edge in pairwise(edges))
        channels = model.config.channels
        self.joined = 2 if len(channels) > 1 and channels[1] <= NARROW else 1
        self.convs = split_input(first, [sum(channels[: self.joined]), *channels[self.joined :]])
        self.width = width

    def forward(self, z: State) -> tuple[Tensor, Tensor]:
        answers = [self.read(tile, z) for tile in self.tiles]
        # Joined before they become uint8: TensorRT knows that type for inputs and outputs only.
        classes, confidence = (join(list(parts)) for parts in zip(*answers, strict=True))
        return classes.to(torch.uint8), confidence

    def read(self, tile: nn.Module, z: State) -> tuple[Tensor, Tensor]:
        """Class indices (B, rows of H, W) as floats and confidence (B, rows of H_0, W_0)."""
        assert isinstance(tile, Tile)
        parts = [rows(zi) for rows, zi in zip(tile.scales, z, strict=True)]
        height, width = parts[0].shape[2:]
        fine = [stretch(part, height, width) for part in parts[: self.joined]]
        hidden = self.convs[0](join(fine))  # (B, S, rows, W_0)
        for conv, part in zip(self.convs[1:], parts[self.joined :], strict=True):
            hidden = hidden + stretch(conv(part), height, width)
        logits = self.last(torch.relu(hidden))  # (B, classes, rows, W_0)
        own = logits[:, :, tile.own]
        # The largest probability of a softmax, without computing the others.
        confidence = (own - own.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal()
        full = tile.mask.mix(stretch(logits, tile.mask.height, self.width))
        return full.argmax(dim=1).float(), confidence


class Tile(nn.Module):
    """Which rows of what make rows ``first`` to ``last`` - 1 of scale 0, and of the mask there.

    The mask's rows lie between rows of scale 0, of which the outermost may be a neighbour's: the
    tile computes those, too.

    Args:
        heights: H_i of every scale.
        height: H of the mask.
    """

    def __init__(self, heights: list[int], height: int, first: int, last: int) -> None:
        super().__init__()
        factor = height // heights[0]
        self.mask = Rows(heights[0], height, factor * first, factor * last)
        start, stop = self.mask.start, self.mask.stop
        self.scales = nn.ModuleList(Rows(h, heights[0], start, stop) for h in heights)
        self.own = slice(first - start, last - start)


class Rows(nn.Module):
    """Rows ``first`` to ``last`` - 1 of a map that is upsampled from n to m rows.

    A full-height map is left to the upsampling of its columns, which can do its rows as well.

    Attributes:
        start: first row that is needed.
        stop: one past the last row that is needed.
        height: rows to which the columns' upsampling must bring a map before ``mix``.
    """

    weights: Tensor | None

    def __init__(self, n: int, m: int, first: int, last: int) -> None:
        super().__init__()
        self.start, self.stop, self.height, weights = first, last, last - first, None
        if (first, last) == (0, m):
            self.start, self.stop = 0, n
        elif n != m:
            weights = interpolation(n, m)[first:last]
            used = weights.any(dim=0).nonzero().flatten()
            self.start, self.stop = int(used[0]), int(used[-1]) + 1
            self.height = self.stop - self.start
            weights = weights[:, self.start : self.stop].contiguous()
        self.register_buffer("weights", weights, persistent=False)

    def mix(self, x: Tensor) -> Tensor:
        """Rows ``start`` to ``stop`` - 1 to those between them."""
        return x if self.weights is None else torch.matmul(self.weights, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x[:, :, self.start : self.stop])


def join(parts: list[Tensor]) -> Tensor:
    """Along the second axis: channels, or the rows of maps without channels."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def interpolation(n: int, m: int) -> Tensor:
    """(m, n): how linear upsampling with aligned corners mixes n rows to m, by torch itself."""
    rows = F.interpolate(torch.eye(n)[None], size=m, mode="linear", align_corners=True)
    return rows[0].T


def stretch(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear upsampling with aligned corners, where there is something to do."""
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


def split_input(conv: nn.Module, channels: list[int]) -> nn.ModuleList:
    """A 1x1 convolution of joined maps as one per map, whose results add up to the same."""
    assert isinstance(conv, nn.Conv2d)
    parts = nn.ModuleList()
    for index, weight in enumerate(torch.split(conv.weight.detach(), channels, dim=1)):
        part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=index == 0)
        part.weight = nn.Parameter(weight.clone(), requires_grad=False)
        if index == 0:
            part.bias = conv.bias
        parts.append(part)
    return parts
