"""The verdict on a chain in plain words, from its numbers and from what they are by chance."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from gch_bench.report.geometry_headline import column, facts, interfaces_of, with_null
from gch_bench.results.geometry import ADEQUATE, ALIGNED, BEYOND, BRANCH, PHYSICAL, STATIC, ChainReport

LEVEL = 0.01  # of the binomial test of how many interfaces lie in a tail that holds 2.5% of them by chance
TAIL = 2 / 80  # chance of a tail: of a value and its 79 rotations, the value is one of the two largest, or smallest
FAR = 4.0  # standard deviations; a median farther from the null's mean needs no other interface to tell
NEAR = 2.0  # nearer than this, and without too many interfaces in a tail, nothing can be told from chance
SIDES = {  # whether too many interfaces lie in the tail of aligned ones, and in the other
    (1, 0): "aligned beyond chance",
    (0, 1): "aligned less than by chance",
    (0, 0): "alignment indistinguishable from chance",
    (1, 1): "aligned beyond chance at some interfaces, less than by chance at others",
}
NO_CHANCE = "alignment not defined, no null has a spread"
LINEARISED = (
    "the statements hold for each block linearised at these images; products of blocks are off by the composition defect"
)


class _Alignment(NamedTuple):
    """One of the three numbers that say how two factors are turned to each other, and the sentences on it."""

    name: str
    sign: int  # of the side on which aligned factors lie
    beyond: str  # said if they are
    opposite: str  # said if they lie on the other side
    chance: str  # said if they cannot be told from chance
    both: str  # said if there are too many on both sides
    undefined: str  # said if no interface has the number and a null with a spread
    form: str  # of the number


ALIGNMENTS = (
    _Alignment(
        "energy_gain", 1,
        "neighbouring {what} are aligned: at {count} the energy that passes exceeds that of 97.5% of random rotations",
        "neighbouring {what} avoid each other: at {count} less energy passes than under 97.5% of random rotations",
        "the energy that passes between neighbouring {what} is indistinguishable from that under a random rotation: it exceeds"
        " that of 97.5% of rotations at {count}",
        "neighbouring {what} are not turned to each other at random, but not all in the same way: more energy passes than under"
        " 97.5% of random rotations at {count}, less at {other}",
        "whether neighbouring {what} are aligned is not defined: at every interface a spectrum is flat, and rotations"
        " change nothing",
        "median energy gain {value:.2f} (chance: 1; z {z:+.1f})",
    ),
    _Alignment(
        "angle_excess", 1,
        "their leading directions lie nearer to each other than by chance at {count}",
        "their leading directions lie farther from each other than by chance at {count}",
        "the angles between their leading directions are those of a random rotation: nearer at {count}",
        "their leading directions lie nearer to each other than by chance at {count}, farther at {other}",
        "the angles between leading directions are not defined: no spectrum here singles out some of them",
        "median excess of cos^2 {value:+.3f} (chance: 0; z {z:+.1f})",
    ),
    _Alignment(
        "slack_ratio", -1,
        "their largest gains meet: at {count} the product loses less of them than under 97.5% of rotations",
        "their largest gains miss each other: at {count} the product loses more of them than under 97.5% of rotations",
        "what the product loses of their largest gains is what a random rotation loses: less at {count}",
        "the product loses less of their largest gains than under 97.5% of rotations at {count}, more at {other}",
        "what the product loses of the largest gains is not defined: every spectrum here is flat",
        "median slack ratio {value:.2f} (chance: {null:.2f}; z {z:+.1f})",
    ),
)  # fmt: skip


def verdict(report: ChainReport) -> str:
    """One paragraph: alignment, spectra, certificates, and of what the statements hold."""
    sentences = [*_alignment(report), *_spectra(report), *_certificates(report)]
    where = "static weights are diagnostics only" if report.kind == STATIC else LINEARISED
    return " ".join(f"{each[:1].upper()}{each[1:]}." for each in [*sentences, where])


def _alignment(report: ChainReport) -> list[str]:
    table = interfaces_of(report)
    if not len(table):
        return ["the chain is one factor, so there is no interface to look at"]
    branches = (table["form"] == BRANCH).any()
    silent = ["its branches are zero at initialisation, so these are its shortcuts alone"] if zero_branches(report) else []
    found = [text for each in ALIGNMENTS if (text := _sentence(each, table, "branches" if branches else "factors"))]
    found = [found[0].replace(" interfaces", " interfaces (by chance 2.5% of them)", 1), *found[1:]] if found else []
    own = facts(report)
    if found and own["aligned"] and math.isfinite(own["aligned_both"]):
        both = f"{own['aligned_both']:.0f} of the {own['aligned']:.0f} aligned ones"
        found.insert(1, f"{both} also exceed what permutations of the shared channels give (z of at least {BEYOND:g})")
    return [*silent, *found]


def zero_branches(report: ChainReport) -> bool:
    """Whether all branches of a residual chain are zero: none has an interface, and a block is exactly the identity."""
    if report.kind != STATIC or (len(report.interfaces) and (report.interfaces["form"] == BRANCH).any()):
        return False
    return bool((column(report.factors, "identity_distance") == 0).any())


class _Found(NamedTuple):
    """How one number stands to chance."""

    towards: int  # interfaces in the tail of the null where aligned factors lie, which holds 2.5% of them by chance
    away: int  # in the other tail
    total: int  # interfaces whose null has a spread
    value: float  # medians over them
    null: float
    z: float


def _found(each: _Alignment, table: pd.DataFrame) -> _Found | None:
    """None where no interface has the number and a null with a spread."""
    rows = with_null(table, each.name)
    rows = rows[column(rows, each.name).notna()]
    if not len(rows):
        return None
    percentile = column(rows, f"{each.name}_percentile")
    above, below = int((percentile >= ALIGNED).sum()), int((percentile <= 100 - ALIGNED).sum())
    towards, away = (above, below) if each.sign > 0 else (below, above)
    value, null, z = (float(column(rows, f"{each.name}{end}").median()) for end in ("", "_null", "_z"))
    return _Found(towards, away, len(rows), value, null, z)


def _sentence(each: _Alignment, table: pd.DataFrame, what: str) -> str:
    """The sentence on one number; "" where the table lacks it."""
    if each.name not in table:
        return ""
    found = _found(each, table)
    if found is None:
        return each.undefined.format(what=what)
    side = _side(each, found)
    words = {(1, 0): each.beyond, (0, 1): each.opposite, (0, 0): each.chance, (1, 1): each.both}[side]
    towards, away = found.towards, found.away
    count, other = (away, towards) if side == (0, 1) else (towards, away)
    hint = "; this is no clear result" if side == (0, 0) and abs(found.z) >= NEAR else ""
    numbers = each.form.format(value=found.value, z=found.z, null=found.null)
    filled = words.format(what=what, count=f"{count} of {found.total} interfaces", other=other)
    left = len(table) - found.total
    others = f"; at {left} more the null has no spread" if left else ""
    return f"{filled}, {numbers}{hint}{others}"


def short_verdict(report: ChainReport) -> str:
    """The same in one line, for the terminal."""
    own = facts(report)
    parts = [f"branches zero at initialisation: {gain_words(report)}" if zero_branches(report) else gain_words(report)]
    if own["chart_applicable"] > 0:
        parts.append(f"power law adequate for {own['chart_adequate']:.0f} of {own['chart_applicable']:.0f} factors")
    if math.isfinite(own["certified_95"]):
        parts.append(f"{own['certified_95']:.0%} of the blocks certified at R.95")
    elif math.isfinite(own["certified_share"]):
        parts.append(f"{own['certified_share']:.0%} of the blocks certified")
    return "; ".join(parts)


def gain_words(report: ChainReport) -> str:
    """In a few words how the energy gain of a chain stands to chance."""
    table = interfaces_of(report)
    if not len(table):
        return "no interface"
    found = _found(ALIGNMENTS[0], table)
    return SIDES[_side(ALIGNMENTS[0], found)] if found else NO_CHANCE


def verdict_over_images(reports: Sequence[ChainReport]) -> str:
    """One paragraph on the measured Jacobians of one network, a report per image."""
    return f"Neighbouring blocks: {sides_over_images(reports)}. {LINEARISED[0].upper()}{LINEARISED[1:]}."


def sides_over_images(reports: Sequence[ChainReport]) -> str:
    """At how many images the energy gain stands to chance in the same way."""
    words = Counter(gain_words(report) for report in reports)
    return ", ".join(f"{text} at {count} of {len(reports)} images" for text, count in words.most_common())


def _side(each: _Alignment, found: _Found) -> tuple[int, int]:
    """Whether more interfaces than by chance lie where aligned factors do, and whether more do on the other side."""
    z = each.sign * found.z
    return int(_unlikely(found.towards, found.total) or z >= FAR), int(_unlikely(found.away, found.total) or z <= -FAR)


def _unlikely(count: int, total: int) -> bool:
    """Whether so many of the interfaces in a tail of 2.5% are too many for chance: their rotations are independent."""
    return bool(stats.binom.sf(count - 1, total, TAIL) < LEVEL)


def _spectra(report: ChainReport) -> list[str]:
    own = facts(report)
    if not math.isfinite(own["chart_applicable"]):
        return []
    total, adequate = int(own["chart_applicable"]), int(own["chart_adequate"])
    left = int(own["factors"]) - total
    if total == 0:
        text = "the power-law chart applies to no factor: their spectra are flat, or have fewer than 8 ranks"
    elif adequate == total:
        mean = float(column(report.factors, "exponent")[report.factors["chart"] == ADEQUATE].mean())
        text = f"the power-law chart is adequate for {f'all {total} factors' if total > 1 else 'the only factor'}"
        text = f"{text}{' to which it applies' if left else ''}, mean exponent {mean:.2f}"
    elif adequate == 0:
        text = f"the power-law chart is adequate for none of the {total} factors, so their exponents describe nothing"
    else:
        text = f"the power-law chart is adequate for {adequate} of {total} factors; exponents of the others describe nothing"
    if left and total:
        text += f"; {left} more {'are' if left > 1 else 'is'} flat or {'have' if left > 1 else 'has'} fewer than 8 ranks"
    return [text, *_spikes(report, own["spikes"])]


def _spikes(report: ChainReport, spikes: float) -> list[str]:
    """Spikes are those of single matrices, which Gaussian ones are the null of; an identity beside them would hide them."""
    if not math.isfinite(spikes):
        return []
    read = [column(report.factors, name).notna().any() for name in ("spikes_read", "spikes_write")]
    which = "single matrix of the branches" if any(read) else "factor"
    above = f"{spikes:.1f} singular values per {which} stand above all those of Gaussian matrices of its shape (mean)"
    none = f"no singular value of a {which} stands above those of Gaussian matrices of the same shape"
    return [above if spikes > 0 else none]


def _certificates(report: ChainReport) -> list[str]:
    own, table = facts(report), interfaces_of(report)
    if not math.isfinite(own["certified_share"]):
        return []
    energy = own["energy_certified_share"]
    weighted = f", which hold {energy:.0%} of the energy," if math.isfinite(energy) else ""
    text = f"at the charts' windows {own['certified_share']:.0%} of the blocks{weighted} are certified to keep their status"
    at_95, rotated = own["certified_95"], own["certified_95_rotated"]
    if math.isfinite(at_95):
        text += f", with the ranks that hold 95% of the energy {at_95:.0%}"
        text += f" (after a random rotation {rotated:.0%})" if math.isfinite(rotated) else ""
    name = f"{PHYSICAL}_certified"
    if name in table:
        text += f"; the strict all-or-nothing certificate holds at {int((table[name] != 'no').sum())} of {len(table)}"
        " interfaces"
    if math.isfinite(own["certified_rank"]):
        rank = own["certified_rank"]
        kept = "only if all ranks are kept" if rank >= 0.995 else f"once {rank:.0%} of the ranks are kept"
        text += f"; 95% of the blocks are decided {kept} (median)"
    return [text]
