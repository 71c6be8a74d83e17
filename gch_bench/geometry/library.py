"""The geometry of a network as a call: what `diagnose.py` measures of weights, as data frames."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn

from gch_bench.geometry.analysis import OPTIONS, TABLES, Options, analyse
from gch_bench.geometry.chain_format import load_chain
from gch_bench.geometry.chains import chain_factors, find_chains, for_network, weight_matrices
from gch_bench.geometry.weights import weight_table
from gch_bench.results.geometry import ChainReport


class Frames(NamedTuple):
    """What was measured of a network; the columns are explained in docs/geometry.md."""

    summary: pd.DataFrame  # a row per chain: the headline
    factors: pd.DataFrame  # a row per factor: its spectrum and chart
    interfaces: pd.DataFrame  # a row per interface and form: how two factors are turned to each other
    certificates: pd.DataFrame  # a row per interface, form, matrix and eta: how much of its channels is certain
    channels: pd.DataFrame  # a row per output channel of an interface
    columns: pd.DataFrame  # a row per input channel of an interface
    edges: pd.DataFrame  # a row per edge between groups of an interface
    spectra: pd.DataFrame  # a row per singular value of a factor
    weights: pd.DataFrame  # a row per single weight


def diagnose(
    model: nn.Module | Mapping[str, Tensor], chain: str = "auto", options: Options = OPTIONS, head_dim: int | None = None
) -> Frames:
    """The geometry of a network's weights.

    Args:
        model: a network or its state dict.
        chain: "auto" for all built-in chains that fit, the name of one, or a file NAME.yaml.
        options: as the groups `spectral` and `alignment` of diagnose.py.
        head_dim: rows of an attention head; by default what the network's modules say.

    Raises:
        ValueError: if the chain does not exist or does not fit the weights, no built-in chain fits, or a weight is not finite.
    """
    network = model if isinstance(model, nn.Module) else None
    weights: Mapping[str, Tensor] = network.state_dict() if network is not None else model  # type: ignore[assignment]
    head_dim = head_dim or (head_dim_of(network) if network is not None else None)
    wanted = find_chains(weights) if chain == "auto" else [load_chain(chain)]
    if not wanted:
        raise ValueError("no built-in chain fits these weights: give chain='NAME.yaml' (gch_bench/geometry/chain_format.py)")
    scale = options.spectral.residual_scale
    if network is not None:
        wanted = [for_network(each, network) for each in wanted]
    reports = [
        analyse(chain_factors(weights, each, head_dim=head_dim, residual_scale=scale), each.name, each.description, options)
        for each in wanted
    ]
    table = weight_table(weight_matrices(weights)) if options.spectral.weights else pd.DataFrame()
    return Frames(**frames(reports), weights=table)


def frames(reports: Iterable[ChainReport]) -> dict[str, pd.DataFrame]:
    """The tables of several chains of one network, joined: name -> table."""
    reports = list(reports)
    rows = [{"chain": each.chain, "kind": each.kind, **each.summary} for each in reports]
    joined = {}
    for name in TABLES:
        parts = [part for part in (getattr(each, name) for each in reports) if len(part)]
        joined[name] = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return {"summary": pd.DataFrame(rows), **joined}


def head_dim_of(network: nn.Module) -> int | None:
    """Rows of an attention head, as the first module with a ``head_dim`` or ``dim_head`` says; None if there is none."""
    sizes = (getattr(module, "head_dim", getattr(module, "dim_head", None)) for module in network.modules())
    return next((size for size in sizes if isinstance(size, int)), None)
