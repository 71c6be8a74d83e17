"""What other libraries compute as calibration and selective-prediction errors: python scripts/compare_calibration.py (a minute)

Prints the table of docs/calibration.md: for each library that is installed, its number minus that of this project, on four
inputs of 500 images with 10 classes and 10 bins. The libraries are no dependencies, but for those of the tests.
"""

import argparse
import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from gch_bench import calibration, risk_coverage

BINS, CLASSES = 10, 10


class Input(NamedTuple):
    """Probabilities float32 (N, C) and labels (N,), with what follows from them."""

    p: np.ndarray
    label: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        return self.p.max(axis=1)

    @property
    def correct(self) -> np.ndarray:
        return self.p.argmax(axis=1) == self.label

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.p), torch.from_numpy(self.label)


def inputs() -> dict[str, Input]:
    """Four inputs; the last three differ from the first only in the confidences of some or all images."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, 500)
    p = softmax(1.4 * rng.standard_normal((500, CLASSES)) + 2.5 * np.eye(CLASSES)[label], axis=1)

    def with_confidence(confidence: np.ndarray) -> Input:
        """The images whose new confidence is a number get it; their other probabilities are scaled."""
        new, top = p.copy(), p.argmax(axis=1)
        for i in np.flatnonzero(np.isfinite(confidence)):
            new[i] *= (1 - confidence[i]) / (1 - p[i, top[i]])
            new[i, top[i]] = confidence[i]
        return Input(new.astype(np.float32), label)

    highest = p.max(axis=1)
    wrong = p.argmax(axis=1) != label
    certain = (highest > np.quantile(highest, 0.6)) & (wrong | (rng.random(500) < 0.4))
    half = np.abs(highest - 0.5) < np.quantile(np.abs(highest - 0.5), 0.2)
    tied = with_confidence(np.ceil(highest * 8) / 8 - 1 / 16)
    right_first = np.argsort(~tied.correct, kind="stable")
    return {
        "usual": Input(p.astype(np.float32), label),
        "a fifth at 1": with_confidence(np.where(certain, 1.0, np.nan)),
        "a fifth at 0.5": with_confidence(np.where(half, 0.5, np.nan)),
        "tied, right ones first": Input(tied.p[right_first], label[right_first]),
    }


def ours() -> dict[str, Callable[[Input], float]]:
    """Quantity -> this project's number."""
    return {
        "ECE": lambda i: calibration.expected_calibration_error(i.confidence, i.correct, BINS),
        "maximum CE": lambda i: calibration.maximum_calibration_error(i.confidence, i.correct, BINS),
        "equal-mass ECE": lambda i: calibration.equal_mass_calibration_error(i.confidence, i.correct, BINS),
        "class-wise ECE": lambda i: calibration.classwise_calibration_error(i.p, i.label, BINS),
        "smECE": lambda i: calibration.smooth_calibration_error(i.confidence, i.correct),
        "Brier": lambda i: float(((i.p.astype(float) - np.eye(CLASSES)[i.label]) ** 2).sum(axis=1).mean()),
        "AURC": lambda i: risk_coverage.area_under_risk_coverage(i.confidence, i.correct),
        "AUGRC": lambda i: risk_coverage.area_under_generalized_risk_coverage(i.confidence, i.correct),
    }


def updated(metric: Any, i: Input) -> float:
    """The number of a torchmetrics-like object."""
    metric.update(*i.tensors)
    return float(metric.compute())


def theirs() -> list[tuple[str, str, str, str, Callable[[Any, Input], float]]]:
    """(distribution, module, quantity, call, number), where `number` gets the module and the input."""
    of_torchmetrics = "torchmetrics.functional.classification"
    of_torch_uncertainty = "torch_uncertainty.metrics.classification"
    multiclass = {"task": "multiclass", "num_classes": CLASSES, "num_bins": BINS}

    def one_class_each(m: Any, i: Input) -> float:
        p, label = i.tensors
        errors = [m.binary_calibration_error(p[:, c].contiguous(), (label == c).int(), n_bins=BINS) for c in range(CLASSES)]
        return float(np.mean(errors))

    def torchmetrics_error(norm: str) -> Callable[[Any, Input], float]:
        return lambda m, i: float(m.multiclass_calibration_error(*i.tensors, CLASSES, n_bins=BINS, norm=norm))

    def probmetrics(name: str, *arguments: Any) -> Callable[[Any, Input], float]:
        def number(m: Any, i: Input) -> float:
            p, label = i.tensors
            return float(getattr(m, name)(*arguments).compute_from_labels_probs(label, p))

        return number

    return [
        ("torchmetrics", of_torchmetrics, "ECE", "multiclass_calibration_error", torchmetrics_error("l1")),
        ("torchmetrics", of_torchmetrics, "maximum CE", "the same, norm=max", torchmetrics_error("max")),
        ("torchmetrics", of_torchmetrics, "class-wise ECE", "mean of binary_calibration_error", one_class_each),
        ("netcal", "netcal.metrics", "ECE", "ECE", lambda m, i: m.ECE(BINS).measure(i.p, i.label)),
        ("netcal", "netcal.metrics", "maximum CE", "MCE", lambda m, i: m.MCE(BINS).measure(i.p, i.label)),
        ("netcal", "netcal.metrics", "equal-mass ECE", "ECE(equal_intervals=False)",
         lambda m, i: m.ECE(BINS, equal_intervals=False).measure(i.p, i.label)),
        ("relplot", "relplot", "smECE", "smECE",
         lambda m, i: float(m.smECE(i.confidence.astype(float), i.correct.astype(float)))),
        ("torch-uncertainty", of_torch_uncertainty, "ECE", "CalibrationError",
         lambda m, i: updated(m.CalibrationError(**multiclass), i)),
        ("torch-uncertainty", of_torch_uncertainty, "equal-mass ECE", "AdaptiveCalibrationError",
         lambda m, i: updated(m.AdaptiveCalibrationError(**multiclass), i)),
        ("torch-uncertainty", of_torch_uncertainty, "class-wise ECE", "ClasswiseCalibrationError",
         lambda m, i: updated(m.ClasswiseCalibrationError(CLASSES, BINS), i)),
        ("torch-uncertainty", of_torch_uncertainty, "smECE", "SmoothCalibrationError",
         lambda m, i: updated(m.SmoothCalibrationError(), i)),
        ("torch-uncertainty", of_torch_uncertainty, "smECE", "the same, kernel_type=reflected",
         lambda m, i: updated(m.SmoothCalibrationError(kernel_type="reflected"), i)),
        ("torch-uncertainty", of_torch_uncertainty, "AURC", "AURC", lambda m, i: updated(m.AURC(), i)),
        ("torch-uncertainty", of_torch_uncertainty, "AUGRC", "AUGRC", lambda m, i: updated(m.AUGRC(), i)),
        ("probmetrics", "probmetrics.metrics", "ECE", "CalibrationError", probmetrics("CalibrationError", BINS)),
        ("probmetrics", "probmetrics.metrics", "smECE", "SmoothCalibrationError", probmetrics("SmoothCalibrationError")),
        ("probmetrics", "probmetrics.metrics", "Brier", "BrierLoss", probmetrics("BrierLoss")),
    ]  # fmt: skip


def difference(number: Callable[[Any, Input], float], library: Any, case: Input, own: float) -> str:
    """Their number minus ours, or that the library raises an error."""
    try:
        value = number(library, case) - own
    except ValueError as error:
        return f"ValueError: {error}"
    return "equal" if abs(value) < 2e-6 else f"{value:+.5f}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    cases = inputs()
    print(f"| quantity | computed by | {' | '.join(cases)} |\n|---|---|{'---:|' * len(cases)}")
    for quantity, function in ours().items():
        own = {name: function(case) for name, case in cases.items()}
        print(f"| {quantity} | this project | {' | '.join(f'{value:.5f}' for value in own.values())} |")
        for distribution, module, of, call, number in theirs():
            if of != quantity:
                continue
            try:
                library = importlib.import_module(module)
            except ImportError as error:
                print(f"| {quantity} | {distribution}: not installed ({error.name}) |")
                continue
            differences = [difference(number, library, case, own[name]) for name, case in cases.items()]
            print(f"| | {distribution} {version(distribution)} `{call}` | {' | '.join(differences)} |", flush=True)


if __name__ == "__main__":
    main()
