"""The geometry of a network as a call: what `diagnose.py` measures of weights, as data frames."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn

from gch_bench.geometry.analysis import OPTIONS, TABLES, Options, analyse
from gch_bench.geometry.chain_format import load_chain
from gch_bench.geometry.chains import chain_factors, find_chains, for_network, weight_matrices
from gch_bench.geometry.weights import weight_table
from gch_bench.results.geometry import ChainReport

__all__ = ["Frames", "Options", "diagnose", "frames", "head_dim_of"]


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
    model: nn.Module | Mapping[str, Tensor],
    chain: str | Sequence[str] = "auto",
    options: Options | None = None,
    head_dim: int | None = None,
) -> Frames:
    """The geometry of a network's weights as data frames: .summary .factors .interfaces .certificates .channels and others.

    Args:
        model: a network or its state dict.
        chain: "auto" for the first family of built-in chains that fits, the name of a chain or a file NAME.yaml, or several.
        options: ``Options(spectral, alignment, seed)`` of this module, with the groups of diagnose.py's options.
        head_dim: rows of an attention head; by default what the network's modules say.

    Raises:
        ValueError: a chain does not exist or does not fit the weights, no built-in chain fits, or a weight is not finite.
        TypeError: the model is neither a network nor a mapping from names to tensors.
    """
    network = model if isinstance(model, nn.Module) else None
    if network is None and not isinstance(model, Mapping):
        raise TypeError(f"model must be a network or its state dict, got {type(model).__name__}")
    weights: Mapping[str, Tensor] = network.state_dict() if network is not None else model  # type: ignore[assignment]
    options = options or OPTIONS
    head_dim = head_dim or (head_dim_of(network) if network is not None else None)
    automatic = chain == "auto"
    names = [chain] if isinstance(chain, str) else list(chain)
    wanted = find_chains(weights) if automatic else [load_chain(name) for name in names]
    reports = []
    for each in wanted:
        if network is not None:
            each = for_network(each, network)
        factors = chain_factors(weights, each, head_dim=head_dim, residual_scale=options.spectral.residual_scale)
        try:
            reports.append(analyse(factors, each.name, each.description, options))
        except ValueError as error:
            if not automatic:
                raise
            warnings.warn(f"chain {each.name} was left out: {error}", stacklevel=3)
    if not reports:
        raise ValueError(
            f"no built-in chain fits these weights (first keys: {', '.join(list(weights)[:3])}): give chain='NAME.yaml'"
            " (gch_bench/geometry/chain_format.py)"
        )
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
