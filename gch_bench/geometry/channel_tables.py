"""The long tables of an interface: a row per output channel, per column and per edge of its alignment matrix."""

import pandas as pd
import torch
from torch import Tensor

from gch_bench.geometry.channels import Channels
from gch_bench.spectral.labels import LABELS


def channel_tables(found: Channels) -> dict[str, pd.DataFrame]:
    """The tables `channels`, `columns` and `edges` of one alignment matrix.

    A certificate has three values: 1 certain, -1 certain that not, 0 undecided. An uncertain label is "?".
    """
    return {"channels": _channels(found), "columns": _columns(found), "edges": _edges(found)}


def _channels(found: Channels) -> pd.DataFrame:
    labels = found.labels
    numbers = {name: values.cpu().numpy() for name, values in labels._asdict().items() if name != "label"}
    named = (*LABELS, "?")  # NO_LABEL is -1, the last
    head = {
        "channel": range(len(labels.label)),
        "group": found.alignment.group.cpu().numpy(),
        "label": [named[kind] for kind in labels.label.tolist()],
        "certain_label": [named[kind] for kind in found.certain_labels.tolist()],
    }
    return pd.DataFrame(head | numbers)


def _columns(found: Channels) -> pd.DataFrame:
    made, certain = found.alignment, found.certificate
    return pd.DataFrame(
        {
            "column": range(made.supports.shape[1]),
            "supports": _listed(made.supports),
            "certainly_in": _listed(certain.blocks == 1),
            "undecided_in": _listed(certain.blocks == 0),
            "degree": made.degree.cpu().numpy(),
            "hub": made.hubs.cpu().numpy(),
            "certain_hub": certain.hubs.cpu().numpy(),
        }
    )


def _listed(truths: Tensor) -> list[str]:
    """For each column of ``truths`` (q, n) the numbers of the groups where it is true, such as "0,3"."""
    return [",".join(str(g) for g, true in enumerate(column) if true) for column in truths.T.tolist()]


def _edges(found: Channels) -> pd.DataFrame:
    """Every pair of groups that is an edge or may be one, with the sizes of its SRS set: certain, measured, possible."""
    made, certain = found.alignment, found.certificate
    one, other = torch.triu(made.edges | (certain.edges >= 0), 1).nonzero().cpu().unbind(1)
    shared = [certain.shared(g, h) for g, h in zip(one.tolist(), other.tolist(), strict=True)]
    measured = [int((made.supports[g] & made.supports[h]).sum()) for g, h in zip(one.tolist(), other.tolist(), strict=True)]
    return pd.DataFrame(
        {
            "one": one.numpy(),
            "other": other.numpy(),
            "strength": made.overlap.cpu()[one, other].numpy(),
            "edge": made.edges.cpu()[one, other].numpy(),
            "certain_edge": certain.edges.cpu()[one, other].numpy(),
            "shared": pd.array(measured, dtype="int64"),
            "certainly_shared": pd.array([int((each == 1).sum()) for each in shared], dtype="int64"),
            "possibly_shared": pd.array([int((each >= 0).sum()) for each in shared], dtype="int64"),
        }
    )
