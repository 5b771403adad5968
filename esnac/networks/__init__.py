"""Networks by name: the registry, all but two for small images, and any importable callable.

Every registered network takes images of any number of channels, 8x8 to 32x32 (all but VGG also
larger ones), gives one row of logits per image, and is made of `torch.nn` leaf modules that
`torch.fx` can trace. Initial weights come from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from esnac.errors import UnknownNameError
from esnac.networks import custom
from esnac.networks.convnet import convnet4_1, convnet4_2, convnet4_3, convnet8, convnet11
from esnac.networks.densenet import densenet40, densenet100
from esnac.networks.efficientnet import (
    efficientnet_b0,
    efficientnet_b0_224,
    efficientnet_b1,
    efficientnet_b1_224,
)
from esnac.networks.mobilenet import mobilenetv2
from esnac.networks.preact_resnet import (
    preact_resnet38,
    preact_resnet92,
    preact_resnet164,
    require_name,
)
from esnac.networks.resnet import (
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet56,
    resnet110,
)
from esnac.networks.shufflenet import shufflenet
from esnac.networks.vgg import vgg16, vgg19
from esnac.networks.wide_resnet import wrn16_4, wrn28_10, wrn40_2

__all__ = ["FAMILIES", "NETWORKS", "build", "family"]

#: Called as factory(num_classes, in_channels=3).
Factory = Callable[..., nn.Module]

FAMILIES: dict[str, tuple[Factory, ...]] = {
    "convnet": (convnet8, convnet11, convnet4_1, convnet4_2, convnet4_3),
    "densenet": (densenet40, densenet100),
    "efficientnet": (efficientnet_b0, efficientnet_b1, efficientnet_b0_224, efficientnet_b1_224),
    "mobilenet": (mobilenetv2,),
    "preact_resnet": (preact_resnet38, preact_resnet92, preact_resnet164),
    "resnet": (resnet18, resnet34, resnet20, resnet32, resnet44, resnet56, resnet110),
    "shufflenet": (shufflenet,),
    "vgg": (vgg16, vgg19),
    "wide_resnet": (wrn16_4, wrn28_10, wrn40_2),
}

NETWORKS: dict[str, Factory] = {
    factory.__name__: factory for members in FAMILIES.values() for factory in members
}


def build(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A freshly initialised network, on the CPU unless torch's default device says otherwise.

    `name` is a registered name or `package.module:callable`, see `custom.build`. Raises
    UnknownNameError (lists the known names), and EsnacError for a callable that fails and for a
    depth that a pre-activation ResNet cannot have.
    """
    if custom.is_custom(name):
        return custom.build(name, num_classes, in_channels)
    if name not in NETWORKS:
        require_name(name)
        raise UnknownNameError("network", name, [*NETWORKS, custom.PATTERN])
    return NETWORKS[name](num_classes, in_channels)


def family(name: str) -> str:
    """The family of a network, "custom" for a user's callable. Raises UnknownNameError."""
    if custom.is_custom(name):
        return "custom"
    for title, members in FAMILIES.items():
        if any(factory.__name__ == name for factory in members):
            return title
    require_name(name)
    raise UnknownNameError("network", name, [*NETWORKS, custom.PATTERN])
