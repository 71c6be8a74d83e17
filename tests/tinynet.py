"""A network of a few thousand parameters with real stages, made through model.factory: seconds instead of minutes."""

from collections import OrderedDict

from torch import Tensor, nn


class TinyNet(nn.Sequential):
    """(B, 3, H, W) -> logits (B, num_classes); the stage "late" has a map of H/8 x W/8."""


def tinynet(num_classes: int, width: int = 8) -> TinyNet:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

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


def broken(num_classes: int) -> nn.Module:
    """Gives non-finite logits from the second training step on."""

    class Broken(TinyNet):
        steps = 0

        def forward(self, images: Tensor) -> Tensor:
            self.steps += self.training
            logits = super().forward(images)
            return logits * float("nan") if self.training and self.steps > 50 else logits

    network = Broken(OrderedDict(tinynet(num_classes).named_children()))
    return network
