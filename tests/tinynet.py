"""A network of a few thousand parameters with real stages, made through model.factory: seconds instead of minutes."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn


class TinyNet(nn.Sequential):
    """(B, 3, H, W) -> logits (B, num_classes); the stage "late" has a map of H/8 x W/8."""


def tinynet(num_classes: int, width: int = 8, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> TinyNet:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), norm(outputs), nn.ReLU())

    return TinyNet(
        OrderedDict(
            shrink=nn.AvgPool2d(2),
            early=block(3, width),
            late=block(width, 2 * width),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(2 * width, num_classes),
        )
    )


def groupnorm(num_classes: int) -> TinyNet:
    """Without BatchNorm, so that no image's logits depend on the other images of a batch."""
    return tinynet(num_classes, norm=lambda channels: nn.GroupNorm(4, channels))


class Broken(TinyNet):
    """Breaks in training after 50 steps: the logits themselves, or only their gradient."""

    steps = 0
    only_gradient = False

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        logits = super().forward(images)
        if not self.training or self.steps <= 50:
            return logits
        if self.only_gradient:
            return logits + (logits - logits.detach()).abs().sqrt()  # 0, with derivative infinity * 0
        return logits * float("nan")


def broken(num_classes: int) -> TinyNet:
    return Broken(OrderedDict(tinynet(num_classes).named_children()))


def broken_gradient(num_classes: int) -> TinyNet:
    network = Broken(OrderedDict(tinynet(num_classes).named_children()))
    network.only_gradient = True
    return network
