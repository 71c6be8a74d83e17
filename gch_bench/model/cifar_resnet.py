"""ResNet-18 for small images: timm's network with another stem.

On images of 32 pixels the usual stem of ImageNet (a 7x7 convolution of stride 2 and a max-pooling of stride 2) leaves a map of
one site for the last stage. The usual network for CIFAR begins with a 3x3 convolution of stride 1 instead (He et al. 2016,
section 4.2, do so for their small ResNets).
"""

from collections.abc import Sequence
from typing import Any

from timm.models.resnet import BasicBlock, ResNet
from torch import nn

TIMM_STEM = 4  # stride of the stem that timm's ResNet counts with


def resnet18_cifar(
    num_classes: int, channels: Sequence[int] = (64, 128, 256, 512), stem_stride: int = 1, output_stride: int = 8
) -> ResNet:
    """timm's ResNet-18 with a 3x3 convolution as its stem, without max-pooling.

    The stages L1..L4 are maps of 1, 1/2, 1/4 and 1/8 of the side of the stem's map, as long as that is at least the side of the
    image divided by output_stride; after it, convolutions are dilated instead of strided, as timm does it.

    Args:
        num_classes: number of classes.
        channels: of the four stages; even numbers. The stem has as many as the first.
        stem_stride: 1, 2 or 4.
        output_stride: side of the images / side of the last map: 2, 4 or 8 times stem_stride.

    Raises:
        ValueError: an argument out of its range.
    """
    if len(channels) != 4 or any(number < 2 or number % 2 for number in channels):
        raise ValueError(f"channels must be four even numbers, got {list(channels)}")
    if stem_stride not in (1, 2, 4):
        raise ValueError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
    if output_stride not in (2 * stem_stride, 4 * stem_stride, 8 * stem_stride):
        raise ValueError(f"output_stride must be 2, 4 or 8 times stem_stride ({stem_stride}), got {output_stride}")
    network: Any = ResNet(
        BasicBlock,  # type: ignore[arg-type]  # timm's annotation is of an instance
        (2, 2, 2, 2),
        num_classes,
        output_stride=output_stride * TIMM_STEM // stem_stride,
        channels=tuple(channels),
        stem_type="deep",  # only such a stem may have other than 64 channels, 2 * stem_width; it is replaced
        stem_width=channels[0] // 2,
    )
    network.conv1 = nn.Conv2d(3, channels[0], kernel_size=3, stride=stem_stride, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm draws its convolutions
    network.maxpool = nn.Identity()
    for stage in network.feature_info:
        stage["reduction"] = stage["reduction"] * stem_stride // TIMM_STEM
    network.feature_info[0]["reduction"] = stem_stride
    made: ResNet = network
    return made
