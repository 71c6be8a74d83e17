"""Made-up results of mode=geometry with all columns, for tests of their report: a trained network, and one at chance."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from gch_bench.geometry.pictures import Place, picture
from gch_bench.results.geometry import BLOCK, BRANCH, PHYSICAL, SOURCE, STATIC, ChainReport, Picture, headline_interfaces
from gch_bench.spectral.alignment import align

ETAS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


def factor_rows(count: int, trained: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        d = 64 * 2 ** min(i * 4 // count, 3)
        a = rng.normal(0.9 if trained else 0.35, 0.08)
        good = trained and i % 3 == 0
        rows.append({
            "index": i, "name": f"layer{1 + i * 4 // count}.{i}", "rows": d, "columns": d, "norm": 8.0, "top": 2.5,
            "numerical_rank": d, "exponent": a, "slope": -a, "r_squared": 0.9, "kl": 0.05, "fisher": 1.2,
            "explained_share": 0.94 if good else 0.75, "explained_share_null": 0.7,
            "chart": "adequate" if good else "not adequate",
            "spikes": int(rng.poisson(2)) if trained else 0, "spikes_read": 3.0 if trained else 0.0,
            "spikes_write": 1.0 if trained else 0.0, "rest_share": 0.72, "rest_exponent": a - 0.3, "alpha": 2.4,
            "alpha_of_chart": 1 + 1 / a, "square_exponent": a + 0.1,
            "radial": 1.4 if trained else 0.7, "radial_null": 0.69, "radial_z": 12.0 if trained else 0.3, "chart_radial": 1.2,
            "residual": 0.2,
            **{f"rank_{eta}": max(int(share * d), 1) for eta, share in ((50, 0.1), (90, 0.4), (95, 0.5), (99, 0.8))},
            **{f"chart_rank_{eta}": max(int(share * d), 1) for eta, share in ((50, 0.12), (90, 0.45), (95, 0.55), (99, 0.8))},
            "rank_95_null": 0.66 * d, "window_low": int(0.5 * d), "window_high": int(0.6 * d), "tail_share": 0.05,
            "identity_distance": 1.3, "identity_norm": math.nan, "near_identity": "no", "near_identity_radial": math.nan,
        })  # fmt: skip
    return rows


def interface_row(
    index: int, form: str, factors: list[dict[str, Any]], trained: bool, rng: np.random.Generator
) -> dict[str, Any]:
    gain_z = rng.normal(12 if trained else 0, 1)
    slack_z = rng.normal(-4 if trained else 0, 1)
    angle_z = rng.normal(6 if trained else 0, 1)
    budget, slack, change = 0.9 + 0.1 * rng.random(), 1.1 + 0.1 * rng.random(), rng.normal(0, 0.2)
    d = factors[index]["numerical_rank"]
    row = {
        "index": index, "form": form, "first": factors[index]["name"], "second": factors[index + 1]["name"], "shared": d,
        "energy_gain": 1 + 0.06 * gain_z, "energy_gain_null": 1.0, "energy_gain_z": gain_z,
        "energy_gain_permuted": 1.01, "energy_gain_permuted_z": gain_z / 2, "slack_ratio": 0.5 + 0.04 * slack_z,
        "slack_ratio_null": 0.5, "slack_ratio_z": slack_z, "mean_cosine_squared": 0.1 + 0.01 * angle_z, "angle_null": 0.1,
        "angle_excess": 0.01 * angle_z, "angle_excess_z": angle_z,
        **{f"{name}_percentile": 100 / (1 + math.exp(-1.7 * z)) for name, z in
           (("energy_gain", gain_z), ("slack_ratio", slack_z), ("angle_excess", angle_z))},
        "budget": budget, "slack": slack, "residual_change": change, "displacement": abs(change) / 2,
        "exponent_change": 0.05, "hellinger_squared": 0.01, "bures_squared": 1.3, "spectrum_kl": 0.03, "rank_first": d // 2,
        "rank_second": d // 2, "product_norm": 20.0, "truncation_error": 1.0, "truncation_bound": 2.0, "fitted_bound": 2.2,
    }  # fmt: skip
    for matrix in (PHYSICAL, SOURCE):
        row |= {f"{matrix}_{name}": value for name, value in {
            "groups": 8, "grouping": "contiguous", "tau": 0.3, "omega": 0.9, "radius": 0.001, "limit": "support",
            "certified": "no", "missing": 0.99, "core_share": 0.4, "overlap_share": 0.3, "noise_share": 0.3,
            "overlap_share_low": 0.13, "overlap_share_high": 0.44, "overlap_share_reclustered": 0.28, "masks_certified": 0.55,
            "active": 120, "edges": 9, "hubs": 4, "SC": 20, "SA": 30,
            "ST": 14, "certified_share": 0.84, "energy_certified_share": 0.91, "apriori_certified_share": 0.2,
            "edges_certified": 0.7, "hubs_certified": 0.8, "labels_certified": 0.6, "margin_01": 0.01, "margin_05": 0.05,
            "margin_50": 0.5, "jaccard": 0.9, "agreement": 0.97, "certified_rank_first": d * 3 // 4,
            "certified_rank_second": d * 3 // 4,
            "certified_eta": 0.985, "tau_low_share": 0.82, "tau_high_share": 0.86, "model_share": 0.95,
        }.items()}  # fmt: skip
    return row


def certificate_rows(index: int, form: str, d: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    start = rng.uniform(0.35, 0.6)
    rows = []
    for matrix in (PHYSICAL, SOURCE):
        for eta in ETAS:
            share = min(1 - (1 - start) * ((1 - eta) / 0.5) ** rng.uniform(0.45, 0.6), 1)
            rows.append({
                "index": index, "form": form, "matrix": matrix, "eta": eta,
                "rank_first": int(eta * d), "rank_second": int(eta * d),
                "error": 2 * (1 - eta) ** 0.5, "certified_share": share, "energy_certified_share": min(share * 1.06, 1),
                "edges_certified": share, "hubs_certified": share, "strict": "no",
            })  # fmt: skip
    return rows


def a_picture(index: int, form: str, title: str, groups: int = 8, seed: int = 0) -> Picture:
    """Of a matrix whose groups prefer some columns, and share some of them with their neighbour."""
    generator = torch.Generator().manual_seed(seed + index)
    matrix = torch.randn(24 * groups, 20 * groups, dtype=torch.float64, generator=generator) * 0.4
    for g in range(groups):
        rows = slice(24 * g, 24 * (g + 1))
        matrix[rows, 20 * g : 20 * g + 20 + 2 * g] += torch.randn(
            24, len(matrix[0, 20 * g : 20 * g + 20 + 2 * g]), generator=generator
        )
    group = torch.arange(groups).repeat_interleave(24)
    shuffled = torch.randperm(len(matrix), generator=generator)
    found = align(matrix[shuffled], group[shuffled], tau=3.0, omega=2.0)
    edges = torch.where(found.edges, 1, -1) * (found.overlap - 2.0).abs().gt(0.5)
    for g, h in ((0, 1), (2, 5)) if groups > 5 else ():
        edges[g, h] = edges[h, g] = 0
    return picture(Place(index, form, PHYSICAL, title), matrix[shuffled], found, edges)


def a_chain(count: int = 12, trained: bool = True, branches: bool = True, seed: int = 0, kind: str = STATIC) -> ChainReport:
    """A chain of so many factors; one alone has no interfaces."""
    rng = np.random.default_rng(seed)
    factors = factor_rows(count, trained, rng)
    forms = (BLOCK, BRANCH) if branches else (BLOCK,)
    pairs = [(i, form) for i in range(count - 1) for form in forms]
    interfaces = pd.DataFrame([interface_row(i, form, factors, trained, rng) for i, form in pairs])
    certificates = [row for i, form in pairs for row in certificate_rows(i, form, factors[i]["numerical_rank"], rng)]
    pictures = [a_picture(i, form, f"{factors[i]['name']} -> {factors[i + 1]['name']}") for i, form in pairs[:8]]
    spectra = []
    for row in factors:
        rank = np.arange(1, row["numerical_rank"] + 1)
        energy = rank ** -row["exponent"] * np.exp(rng.normal(0, 0.1, len(rank)))
        null = np.linspace(2, 0.001, len(rank)) ** 2
        energy = np.sort(energy / energy.sum())[::-1]
        spectra.append(pd.DataFrame({
            "index": row["index"], "rank": rank, "value": energy**0.5, "energy": energy, "energy_null": null / null.sum()
        }))  # fmt: skip
    return ChainReport(
        "residual", kind, "each block: identity + its branch", pd.DataFrame(factors), interfaces, pd.DataFrame(certificates),
        spectra=pd.concat(spectra), pictures=pictures, summary=summary_of(pd.DataFrame(factors), interfaces),
    )  # fmt: skip


def summary_of(factors: pd.DataFrame, interfaces: pd.DataFrame) -> dict[str, float]:
    found = {
        "factors": float(len(factors)), "mean_exponent": factors["exponent"].mean(), "mean_kl": 0.05, "drift": math.nan,
        "mean_square_exponent": factors["square_exponent"].mean(), "log_top": 4.5, "log_gain": 0.4,
        "spikes": factors[["spikes_read", "spikes_write"]].to_numpy().mean(),
        "chart_applicable": float((factors["chart"] != "not applicable").sum()),
    }  # fmt: skip
    if not len(interfaces):
        return found
    table = headline_interfaces(interfaces)
    names = ("energy_gain", "energy_gain_z", "slack_ratio", "slack_ratio_z", "angle_excess", "angle_excess_z")
    gain, permuted = table["energy_gain"], table["energy_gain_permuted_z"]
    aligned, opposed = table["energy_gain_percentile"] >= 97.5, table["energy_gain_percentile"] <= 2.5
    return found | {name: table[name].median() for name in names} | {
        "interfaces": float(len(table)), "energy_gain_q25": gain.quantile(0.25), "energy_gain_q75": gain.quantile(0.75),
        "mean_log_gain": np.log(gain.clip(lower=0.01)).mean(), "aligned_share": aligned.mean(), "opposed_share": opposed.mean(),
        "aligned_both_share": (aligned & (permuted >= 2)).mean(), "opposed_both_share": (opposed & (permuted <= -2)).mean(),
        "slack_excess": (table["slack_ratio"] - table["slack_ratio_null"]).median(), "certified_95": 0.88,
        "certified_95_rotated": 0.86, "certified_share": 0.84, "energy_certified_share": 0.91, "strict_share": 0.0,
        "certified_rank": 0.75,
    }  # fmt: skip


def a_facts(**more: Any) -> dict[str, Any]:
    """What run.json holds, as far as the report reads it."""
    return {
        "command": "diagnose.py model=x", "commit": "c0ffee", "versions": {"torch": "2"},
        "hardware": {"gpus": [], "processor": "a processor", "threads": 1},
        "subjects": [{"label": "net", "weights": "abc", "origin": "package", "warnings": ["a | warning"]}], **more,
    }  # fmt: skip
