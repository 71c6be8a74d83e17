"""What mode=geometry measures of one subject: its chains, its block Jacobians at images, and its single weights."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gch_bench import files
from gch_bench.apps.diagnosis.subjects import Subject
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.display import Display
from gch_bench.geometry import chains
from gch_bench.geometry.analysis import Options, analyse
from gch_bench.geometry.chain_format import Chain, builtin_chains
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.measured import Compositions, over_images
from gch_bench.geometry.weights import weight_table
from gch_bench.noise.stages import feature_stages
from gch_bench.results.geometry import MEASURED, ChainReport
from gch_bench.spectral.jacobian import chain_jacobian, network_jacobians

Images = Callable[[Subject], list[tuple[str, Tensor]]]  # a subject's images: (name, normalised (1, 3, size, size))


class Diagnosed(NamedTuple):
    """What was measured on one subject."""

    facts: dict[str, Any]  # for run.json
    reports: list[ChainReport]
    weights: pd.DataFrame
    over_images: pd.DataFrame  # means over the images at which Jacobians were measured
    composition: pd.DataFrame  # how far they compose, a row per interface and image


class Work(NamedTuple):
    """What every measurement of one diagnosis needs."""

    config: DiagnoseConfig
    device: torch.device
    display: Display
    scratch: Path  # the folder where matrices are kept until the diagnosis is whole
    named: list[Chain]  # the chains that were asked for; none: the first family that fits


def diagnose_subject(work: Work, subject: Subject, images: Images | None) -> Diagnosed:
    """Everything that is measured of one subject.

    Raises:
        ValueError: a chain that was asked for does not fit, or a weight is not finite.
    """
    config = work.config
    wanted = work.named or chains.find_chains(subject.weights)
    warnings = list(subject.warnings)
    if not wanted:
        warnings.append(
            f"no built-in chain fits these weights: only the weights themselves were looked at; give chain=FILE.yaml, or one of"
            f" {', '.join(builtin_chains())}"
        )
    reports, fitting = [], []
    for chain in wanted:
        if subject.network is not None:
            chain = chains.for_network(chain, subject.network)
        blocks = chains.chain_blocks(subject.weights, chain, classifier=True)
        factors = chains.chain_factors(
            subject.weights, chain, work.device, subject.head_dim, residual_scale=config.spectral.residual_scale
        )
        try:
            reports.append(_report_chain(work, subject.label, factors, len(blocks), (chain.name, chain.description)))
            fitting.append(chain)
        except ValueError as error:
            if work.named:
                raise
            warnings.append(f"chain {chain.name} was left out: {error}")
    means, composition = pd.DataFrame(), pd.DataFrame()
    if images is not None and fitting:
        measured, composition, means = _jacobian_reports(work, subject, fitting[0], images(subject))
        reports += measured
    table = pd.DataFrame()
    if config.spectral.weights:
        try:
            table = weight_table(chains.weight_matrices(subject.weights, work.device))
        except ValueError as error:
            raise ValueError(f"{error}; spectral.weights=false looks at the chains alone") from error
    facts = {
        "label": subject.label,
        "origin": subject.origin,
        "weights": subject.digest,
        "size": subject.size,
        "epoch": subject.epoch,
        "chains": [item.chain for item in reports],
        "last_stage": feature_stages(subject.network).get("L4") if subject.network is not None else None,
        "warnings": warnings,
    }
    return Diagnosed(facts, reports, table, means, composition)


def _report_chain(work: Work, label: str, factors: Iterable[Factor], count: int, titles: tuple[str, str]) -> ChainReport:
    """The report on a chain of `count` factors, with a progress bar; `titles` are the chain's name and description."""
    config, (name, description) = work.config, titles

    def keep(index: int, form: str, matrices: dict[str, Tensor]) -> None:
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in matrices.items()}
        path = work.scratch / "matrices" / matrices_file(label, name, index, form)
        files.write_atomic(path, partial(np.savez_compressed, **arrays), durable=False)

    with work.display.bar(f"{label} {name}", count, "factors") as advance:

        def ticked() -> Iterator[Factor]:
            for factor in factors:
                yield factor
                advance(factor.name, 1)

        options = Options(config.spectral, config.alignment, config.seed)
        return analyse(ticked(), name, description, options, keep if config.save_matrices else None)


def matrices_file(subject: str, chain: str, interface: int, form: str) -> str:
    """The name of the file with the matrices of one interface."""
    return f"{files.slug(subject)}-{files.slug(chain)}-{interface}-{form}.npz"


def _jacobian_reports(
    work: Work, subject: Subject, chain: Chain, images: list[tuple[str, Tensor]]
) -> tuple[list[ChainReport], pd.DataFrame, pd.DataFrame]:
    """The reports on the measured Jacobians of a chain's blocks, one per image, how they compose, and means over the images."""
    assert subject.network is not None
    jacobian = work.config.jacobian
    blocks = chains.chain_blocks(subject.weights, chain)
    network = subject.network.to(work.device, torch.float64)
    compositions, reports = Compositions(), []
    for image_name, image in images:
        image = image.to(work.device, torch.float64)
        chunk = jacobian.chunk_mib << 20
        whole = chain_jacobian(network, blocks, image, jacobian.token, chunk)
        found = network_jacobians(network, blocks, image, jacobian.token, chunk)
        factors = (Factor(each.name, each.matrix, kind=MEASURED, together=each.together) for each in found)
        name = f"jacobian {image_name}"
        watched = compositions.watch(factors, image_name, whole)
        titles = (name, f"blocks of chain {chain.name}, measured at one validation image")
        reports.append(_report_chain(work, subject.label, watched, len(blocks), titles))
    return reports, compositions.interfaces(), over_images(reports, compositions)
