"""Starting from other weights: all of another run's, or the body of a model for another task."""

from __future__ import annotations

from pathlib import Path

from edge_mdeq.errors import WeightsError
from edge_mdeq.model import MDEQ
from edge_mdeq.weights import load_weights

__all__ = ["transfer"]

READOUT = "readout."


def transfer(weights: Path, model: MDEQ) -> bool:
    """Copy ``weights`` into ``model``: stem and cell always, the readout where it is the same.

    A classifier's body so becomes a segmentation model's (the published Cityscapes models start
    from ImageNet ones); its readout keeps its fresh initialisation.

    Returns:
        Whether the readout was taken over too.

    Raises:
        WeightsError: stem or cell differ; the message lists the first few tensors.
    """
    source = load_weights(weights)[0].state_dict()
    target = model.state_dict()
    body = [key for key in target if not key.startswith(READOUT)]
    foreign = [key for key in source if not key.startswith(READOUT) and key not in target]
    problems = [f"unexpected {key}" for key in foreign]
    for key in body:
        if key not in source:
            problems.append(f"missing {key}")
        elif source[key].shape != target[key].shape:
            problems.append(f"{key} is {tuple(source[key].shape)}, not {tuple(target[key].shape)}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise WeightsError(
            f"{weights} cannot start this model, its stem or cell differ: "
            f"{'; '.join(problems[:5])}{more}"
        )
    readout = {key: value.shape for key, value in target.items() if key.startswith(READOUT)}
    whole = readout == {k: v.shape for k, v in source.items() if k.startswith(READOUT)}
    taken = target.keys() if whole else body
    model.load_state_dict({key: source[key] if key in taken else target[key] for key in target})
    return whole
