"""The table of laws: what makes each, which options it takes, and in which ways its gates may be injected."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

from gch_bench.checks import check_choice
from gch_bench.errors import FieldError
from gch_bench.noise.dropout import DropBlock, Dropout, KeyDropout, SampleDropout, SpatialDropout
from gch_bench.noise.gates import Gate, Gaussian, HardMask
from gch_bench.noise.injection import Additive, TokenRemoval
from gch_bench.noise.kernels import KERNELS
from gch_bench.noise.mechanism import FieldNoise, Mechanism

DEFAULT_KERNEL = "dirichlet_green"


class Law(NamedTuple):
    """A law of noise."""

    make: Callable[..., FieldNoise | Mechanism]
    options: tuple[str, ...]  # names of the arguments of `make` that a user may set, besides the kernel
    takes_kernel: bool
    injections: tuple[str, ...]  # keys of INJECTIONS; the first is the law's own


class Injection(NamedTuple):
    """A way of injection, see injection.py."""

    options: tuple[str, ...]
    needs: str  # what a law must be for it, for the message about a law that is not


LAWS: dict[str, Law] = {
    "samplewise": Law(Gate, ("gamma", "per_channel"), True, ("multiplicative", "additive", "branch")),
    "wick": Law(partial(Gate, normalization="wick"), ("gamma", "per_channel"), True, ("multiplicative", "additive", "branch")),
    "gaussian": Law(Gaussian, ("sigma", "p", "per_channel"), True, ("additive", "multiplicative", "branch")),
    "hard_mask": Law(HardMask, ("p", "per_channel"), True, ("multiplicative", "removal", "branch")),
    "bernoulli": Law(Dropout, ("p",), False, ("multiplicative", "attention", "branch")),
    "bernoulli_channel": Law(SpatialDropout, ("p",), False, ("multiplicative", "branch")),
    "bernoulli_sample": Law(SampleDropout, ("p",), False, ("branch",)),
    "block": Law(DropBlock, ("p", "block_size", "per_channel"), False, ("multiplicative", "branch")),
}

FORMER_NAMES = {"additive": "gaussian"}  # of laws, in the run.json of older runs

INJECTIONS: dict[str, Injection] = {
    "multiplicative": Injection((), "needs a law whose gates leave something of a sample"),
    "additive": Injection(("relative", "channel_rms"), "adds xi - 1, which drops nothing: it needs a law without zeros"),
    "branch": Injection((), "multiplies residual branches"),
    "removal": Injection((), "removes the tokens that a mask drops: it needs a law that drops equally many in every sample"),
    "attention": Injection((), "drops single keys: it needs the law of single values"),
}


def make_mechanism(law: str, kernel: str, options: Mapping[str, Any], injection: str | None = None) -> Mechanism:
    """Make a mechanism from the names of its law, kernel and injection.

    Args:
        law: a key of LAWS.
        kernel: a key of KERNELS; the default one, or an empty word, for a law that takes no kernel.
        options: options of the law, the kernel and the injection together, by name.
        injection: a key of INJECTIONS; None: the law's own.

    Raises:
        ValueError: a name is unknown, law, kernel and injection do not go together, none of them has such an option, or an
            option is out of range; the message gives name, rule and value in one line.
    """
    law = FORMER_NAMES.get(law, law)
    check_choice("law", law, LAWS)
    make, names, takes_kernel, injections = LAWS[law]
    injection = injections[0] if injection is None else injection
    check_choice("injection", injection, INJECTIONS)
    if injection not in injections:
        raise FieldError(
            "injection",
            f"{injection} has no meaning for law {law}, which goes with {', '.join(injections)}: it"
            f" {INJECTIONS[injection].needs}",
        )
    of_kernel = _kernel_options(law, kernel)
    known = {*names, *of_kernel, *INJECTIONS[injection].options}
    for name in sorted(options.keys() - known):
        words = f"law {law}{f' with kernel {kernel}' if takes_kernel else ''}, injection {injection}"
        raise FieldError(name, f"has no meaning for {words}, which take {', '.join(sorted(known))}")
    chosen = {name: options[name] for name in names if name in options}
    own = [KERNELS[kernel](**{name: options[name] for name in of_kernel & options.keys()})] if takes_kernel else []
    inner = {name: options[name] for name in INJECTIONS[injection].options if name in options}
    return _injected(make(*own, **chosen), injection, inner)


def _injected(mechanism: Mechanism, injection: str, options: Mapping[str, Any]) -> Mechanism:
    if injection == "additive":
        assert isinstance(mechanism, FieldNoise), "LAWS allows it for these alone"
        return Additive(mechanism, **options)
    if injection == "removal":
        assert isinstance(mechanism, HardMask), "LAWS allows it for these alone"
        return TokenRemoval(mechanism)
    if injection == "attention":
        assert isinstance(mechanism, Dropout), "LAWS allows it for these alone"
        return KeyDropout(mechanism.p)
    if injection == "branch":
        mechanism.place = "branch"
    return mechanism


def _kernel_options(law: str, kernel: str) -> set[str]:
    """The names of the kernel's options; none for a law without kernel, which refuses all kernels but the default."""
    if LAWS[law].takes_kernel:
        check_choice("kernel", kernel, KERNELS)
        return {field.name for field in fields(KERNELS[kernel])}
    if kernel not in ("", DEFAULT_KERNEL):
        takers = ", ".join(name for name, each in LAWS.items() if each.takes_kernel)
        raise FieldError("kernel", f"has no meaning for law {law}, which draws no field; laws with a kernel: {takers}")
    return set()


def option_defaults(law: str | None, kernel: str, injection: str | None = None) -> dict[str, Any]:
    """The injection of a law, and the options of law, kernel and injection with their defaults; {} where a name is unknown."""
    law = FORMER_NAMES.get(law or "", law)
    if law not in LAWS or (LAWS[law].takes_kernel and kernel not in KERNELS):
        return {}
    make, names, takes_kernel, injections = LAWS[law]
    injection = injections[0] if injection is None else injection
    of_kernel = {each.name: each.default for each in fields(KERNELS[kernel])} if takes_kernel else {}
    of_law = {name: signature(make).parameters[name].default for name in names}
    taken = INJECTIONS[injection].options if injection in INJECTIONS else ()
    of_injection = {name: signature(Additive).parameters[name].default for name in taken}
    return {"injection": injection} | of_kernel | of_law | of_injection
