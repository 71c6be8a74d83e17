"""Numbers that others published for an experiment which this program can run, with their source. They are shown in a column of
their own, never among measured ones."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published mean over the 15 corruptions of ImageNet-C at five severities."""

    model: str  # timm's name, without the tag of the weights
    noise: str  # the mechanism, as noise.name
    stages: str  # as the column stages of ROWS
    metric: str  # key of METRICS
    value: float  # a fraction
    source: str


_GCH_PAGE = "Table 7 (ResNet-50 on ImageNet-C, strength not stated) on the project page of the author of Gaussian Chaos Noise"

# No other number of that paper's tables is public to this project.
PUBLISHED = [
    Published("resnet50", "none", "", "ece", 0.105, _GCH_PAGE),
    Published("resnet50", "gch", "L4", "ece", 0.056, _GCH_PAGE),
]
