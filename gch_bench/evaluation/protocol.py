"""The protocol of an evaluation: everything between the image files and a metric that can change its value, in one id.

Two numbers may be compared if their protocol ids are equal.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from gch_bench.config.parse import identity_of
from gch_bench.config.run import Config
from gch_bench.corruptions import PARAMETER_SETS
from gch_bench.corruptions.draws import ALGORITHM
from gch_bench.data.sets import DataSource
from gch_bench.data.stored_layout import has_arrays
from gch_bench.data.transforms import RGB, Normalisation
from gch_bench.evaluation.cells import parameter_set

NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Protocol:
    """How numbers were measured. Raises ValueError on a malformed field."""

    # Where corrupted images come from: "generated" here, "stored" and used as they are, or "stored_resized", which means
    # stored and then prepared by `geometry`.
    source: str
    data: str  # name of the data set
    data_fingerprint: str  # fingerprint of the clean images that are evaluated
    size: int  # side in pixels of the square images that the network sees
    geometry: str  # how the data set's own images are prepared: "none" or e.g. "resize256-bilinear-centercrop224"
    mean: RGB  # of the normalisation, for pixels in [0, 1]
    std: RGB
    precision: str  # "fp32" or "bf16"
    parameters: (
        str  # corruption parameter set; "SET@SIZE" when used at another size than the set's own, e.g. "imagenet_224@128"
    )
    jpeg_roundtrip: bool  # whether corrupted images went through JPEG: generated ones at quality 85, stored ones as they are
    num_images: int  # that are evaluated in every cell
    corruption_seed: int | None  # None for stored images, as `parameters` is NOT_APPLICABLE: how they were made is unknown
    noise_at_test: str  # "off", or e.g. "on-T10": the mean softmax over 10 noisy passes
    # Where random draws come from: "philox" for generated images, the device type ("cpu", "cuda") for noise at test time,
    # "philox, DEVICE" for both, NOT_APPLICABLE if nothing is drawn. In earlier versions images had the draws of a device, too.
    draws: str = "cpu"
    subset_seed: int | None = None  # seed of the draw of `num_images` images; None: all images of the data set are evaluated

    def __post_init__(self) -> None:
        for field in ("mean", "std"):  # 0 and 0.0 must give the same id, and so must a list and a tuple
            values = tuple(float(value) for value in getattr(self, field))
            if len(values) != 3:
                raise ValueError(f"{field} must have 3 values, got {values}")
            object.__setattr__(self, field, values)
        if not re.fullmatch(r"off|on-T[1-9]\d*", self.noise_at_test):
            raise ValueError(f"noise_at_test must be off or on-T<passes>, got {self.noise_at_test!r}")

    @property
    def id(self) -> str:
        """A readable prefix, then 10 hex digits of the SHA-256 of all fields that differ from their defaults."""
        canonical = json.dumps(identity_of(self), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
        generation = f"-{self.parameters}{'-jpeg85' if self.jpeg_roundtrip else ''}" if self.source == "generated" else ""
        return (
            f"{self.source}-{self.data}-{self.size}px{generation}-{self.precision}-n{self.num_images}"
            f"-noise_{self.noise_at_test}-{digest}"
        )


def protocol_of(config: Config, data: DataSource, normalisation: Normalisation, device: str) -> Protocol:
    """The protocol of a run on a `device` of this type (cpu, cuda)."""
    corruptions, noisy = config.corruptions, bool(config.noise.eval and config.noise.law)
    stored = corruptions.stored
    drawn = [name for name, used in ((ALGORITHM, not stored), (device, noisy)) if used]
    parameters = parameter_set(corruptions, data.size)
    scaled = "" if data.size == PARAMETER_SETS[parameters].size else f"@{data.size}"
    return Protocol(
        source="generated" if not stored else "stored_resized" if corruptions.resize else "stored",
        data=data.name,
        data_fingerprint=data.fingerprint,
        size=data.size,
        geometry=data.geometry,
        mean=normalisation.mean,
        std=normalisation.std,
        precision=config.evaluation.precision,
        parameters=NOT_APPLICABLE if stored else parameters + scaled,
        jpeg_roundtrip=not has_arrays(Path(str(corruptions.root)).expanduser()) if stored else corruptions.jpeg_roundtrip,
        num_images=corruptions.subset or len(data.val),
        corruption_seed=None if stored else corruptions.seed,
        noise_at_test=f"on-T{config.noise.mc_samples}" if noisy else "off",
        draws=", ".join(drawn) or NOT_APPLICABLE,
        subset_seed=None if corruptions.subset is None else corruptions.subset_seed,
    )
