"""Backbones by name, our own or any torchvision or timm model; weights from nowhere, a publisher or a file."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sft_lightning.errors import InputError, near
from sft_lightning.networks.autoencoders import ConvEncoder, MLPEncoder
from sft_lightning.networks.weights import Tensors, evaluated, find_weights, load_into, read_weights
from sft_lightning.networks.wide_resnet import WideResNet

_log = logging.getLogger(__name__)
OWN: dict[str, Callable[[Sequence[int]], nn.Module]] = {"mlp": MLPEncoder, "conv": ConvEncoder, "wrn_28_2": WideResNet}
Stats = float | Sequence[float]


class Backbone(nn.Module):
    """A network without its classifier, and the normalization that belongs to its weights.

    Pixels in [0, 1] go in, so whoever takes the weights cannot take them with another normalization. One gray channel
    is repeated for a network that was made for three.

    Attributes:
        name: As the user wrote it.
        image_shape: (C, H, W) that goes in.
        num_features: Size of what comes out.
        net: The network itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        net: nn.Module,
        num_features: int,
        image_shape: Sequence[int],
        mean: Stats = 0.0,
        std: Stats = 1.0,
    ) -> None:
        """Wraps a network.

        Args:
            name: For messages and for rebuilding.
            net: (B, C, H, W) to (B, num_features).
            num_features: Of the output.
            image_shape: (C, H, W).
            mean: Subtracted from the pixels, one number or one for each channel.
            std: Divides the pixels.
        """
        super().__init__()
        self.name, self.net, self.num_features = name, net, num_features
        self.image_shape = tuple(image_shape)
        self._channels = image_shape[0] if name in OWN else 3
        self.register_buffer("mean", self._stats(mean))
        self.register_buffer("std", self._stats(std))
        self._plain = self._is_plain()

    def _stats(self, value: Stats) -> Tensor:
        numbers = [float(value)] if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(numbers) == 1:
            numbers *= self._channels
        if len(numbers) != self._channels:
            raise InputError(f"mean or std is {numbers}: give one number or {self._channels}, one for each channel")
        return torch.tensor(numbers).view(-1, 1, 1)

    def _is_plain(self) -> bool:
        return bool((self.mean == 0).all() and (self.std == 1).all())

    def normalize(self, mean: Tensor, std: Tensor) -> None:
        """Replaces the normalization.

        Args:
            mean: (C, 1, 1).
            std: (C, 1, 1).
        """
        self.mean.copy_(mean)
        self.std.copy_(std)
        self._plain = self._is_plain()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._plain = self._is_plain()

    def forward(self, x: Tensor) -> Tensor:
        """Computes features.

        Args:
            x: Pixels in [0, 1], (B, C, H, W).

        Returns:
            (B, num_features).
        """
        if x.shape[1] == 1 and self._channels == 3:
            x = x.expand(-1, 3, -1, -1)
        if not self._plain:
            x = (x - self.mean) / self.std
        features: Tensor = self.net(x)
        return features

    def about(self) -> dict[str, Any]:
        """What `rebuild` needs, as primitives."""
        return {"backbone": self.name, "image_shape": list(self.image_shape), "num_features": self.num_features}


def build_backbone(
    name: str,
    image_shape: Sequence[int],
    weights: str = "none",
    mean: Stats | None = None,
    std: Stats | None = None,
) -> tuple[Backbone, Tensors]:
    """Builds a backbone and fills it.

    Args:
        name: `mlp`, `conv`, `wrn_28_2`, a torchvision or timm name; `torchvision/NAME` or `timm/NAME` where both have
            it (torchvision's comes first).
        image_shape: (C, H, W) of the pictures.
        weights: `none`, `default` (the published ones, downloaded), or the path of a file or run.
        mean: Normalization; null for that of the weights, or none.
        std: The same.

    Returns:
        The backbone, and all tensors of the file (a head among them, perhaps).

    Raises:
        InputError: The name is unknown, or the weights cannot be had or fit nothing.
    """
    published = weights == "default"
    if name in OWN:
        if published:
            raise InputError(f"weights is 'default', but nobody publishes weights of {name!r}: give none or a path")
        net = OWN[name](image_shape)
        backbone = Backbone(name, net, int(net.num_features), image_shape)  # type: ignore[arg-type]
    else:
        if image_shape[0] not in (1, 3):
            raise InputError(f"backbone {name!r} takes 1 or 3 channels, the pictures have {image_shape[0]}")
        backbone = _library(name, image_shape, published)
        backbone.net.to(memory_format=torch.channels_last)  # a convolutional network takes half the time on a CPU
    tensors: Tensors = {}
    if weights not in ("none", "default"):
        tensors = _fill(backbone, find_weights(Path(weights)))
    new_mean = backbone.mean if mean is None else backbone._stats(mean)
    new_std = backbone.std if std is None else backbone._stats(std)
    if not bool((new_std > 0).all()):
        raise InputError(f"std is {new_std.flatten().tolist()}: give numbers above 0")
    backbone.normalize(new_mean.clone(), new_std.clone())
    return backbone, tensors


def rebuild(path: str | Path) -> Backbone:
    """Rebuilds the backbone that an `encoder.safetensors` describes.

    Args:
        path: The file or its run folder.

    Raises:
        InputError: The file does not say what it is.
    """
    file = find_weights(Path(path))
    _, about = read_weights(file)
    if "backbone" not in about:
        raise InputError(f"weights {str(file)!r} do not say which backbone they are of: name it yourself")
    return build_backbone(about["backbone"], about["image_shape"], str(file))[0]


def _fill(backbone: Backbone, path: Path) -> Tensors:
    tensors, about = read_weights(path)
    if about.get("part") == "head":
        raise InputError(f"weights {str(path)!r} is a head without a backbone: give it as head_weights")
    if about.get("backbone", backbone.name) != backbone.name:
        raise InputError(
            f"weights {str(path)!r} are of backbone {about['backbone']!r}, asked for is {backbone.name!r}: set "
            f"backbone: {about['backbone']}"
        )
    tensors = evaluated(tensors)
    matched = load_into(backbone.net, tensors, str(path))
    prefix = matched.prefix.removesuffix("net.")
    if (prefix + "mean") in tensors and tensors[prefix + "mean"].shape == backbone.mean.shape:
        backbone.normalize(tensors[prefix + "mean"], tensors[prefix + "std"])
    _log.info("Weights %s: %s.", path, matched)
    return tensors


def _library(name: str, image_shape: Sequence[int], published: bool) -> Backbone:
    library, _, rest = name.partition("/")
    if library not in ("torchvision", "timm"):
        library, rest = "", name
    from torchvision.models import list_models

    if library != "timm" and rest in list_models(module=_torchvision_models()):
        return _torchvision(name, rest, image_shape, published)
    import timm

    if library != "torchvision" and (timm.is_model(rest)):
        return _timm(name, rest, image_shape, published)
    known = [*OWN, *list_models(module=_torchvision_models()), *timm.list_models()]
    raise InputError(
        f"backbone {name!r} is unknown{near(rest, known)}: give {', '.join(OWN)} or a name of torchvision or timm"
    )


def _torchvision_models() -> Any:
    import torchvision.models

    return torchvision.models


def _torchvision(name: str, model: str, image_shape: Sequence[int], published: bool) -> Backbone:
    from torchvision.models import get_model, get_model_weights

    # Inception's side outputs belong to its own training recipe.
    extra: dict[str, Any] = {"aux_logits": published} if model in ("googlenet", "inception_v3") else {}
    if model in ("googlenet", "inception_v3"):  # the published weights expect another normalization than they say
        extra.update(transform_input=published, init_weights=False)
    if model.startswith("vit_"):
        extra["image_size"] = image_shape[1]
    mean: Stats = 0.0
    std: Stats = 1.0
    try:
        choice = get_model_weights(model).DEFAULT if published else None
        if choice is not None:
            extra.pop("init_weights", None)
            transform = choice.transforms()
            mean, std = transform.mean, transform.std
        net = get_model(model, weights=choice, **extra)
    except (URLError, OSError) as error:
        raise _unreachable(name, error) from error
    except (AssertionError, ValueError) as error:
        raise _wrong_size(name, image_shape, error) from error
    if hasattr(net, "aux_logits"):
        net.aux_logits = False
        for side in ("aux1", "aux2", "AuxLogits"):
            if hasattr(net, side):
                setattr(net, side, None)
    _cut(net)
    return Backbone(name, net, _num_features(name, net, image_shape), image_shape, mean, std)


def _cut(net: nn.Module) -> None:
    """Replaces the classifier by nothing."""
    if type(net).__name__ == "SqueezeNet":  # its classifier is a convolution
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return
    path = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, child = path.rpartition(".")
    owner = net.get_submodule(parent)
    if isinstance(owner, nn.Sequential):
        owner[int(child) if child.isdigit() else list(dict(owner.named_children())).index(child)] = nn.Identity()
    else:
        setattr(owner, child, nn.Identity())


@torch.no_grad()
def _num_features(name: str, net: nn.Module, image_shape: Sequence[int]) -> int:
    """What the network makes of one picture, which is also how to know that it takes pictures of this size."""
    device = next(net.parameters()).device
    net.eval()
    try:
        features = net(torch.zeros(1, 3, *image_shape[1:], device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_size(name, image_shape, error) from error
    net.train()
    if features.ndim != 2:
        raise InputError(f"backbone {name!r} gives features of shape {tuple(features.shape[1:])}: take another one")
    return int(features.shape[1])


def _timm(name: str, model: str, image_shape: Sequence[int], published: bool) -> Backbone:
    import timm

    try:
        try:
            net: Any = timm.create_model(model, pretrained=published, num_classes=0, img_size=image_shape[1])
        except TypeError:  # most convolutional networks take any size and no such argument
            net = timm.create_model(model, pretrained=published, num_classes=0)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise (_unreachable(name, error) if published else _wrong_size(name, image_shape, error)) from error
    config: dict[str, Any] = net.pretrained_cfg if published else {}
    features = _num_features(name, net, image_shape)
    return Backbone(name, net, features, image_shape, config.get("mean", 0.0), config.get("std", 1.0))


def _wrong_size(name: str, image_shape: Sequence[int], error: Exception) -> InputError:
    return InputError(
        f"backbone {name!r} does not take images of side {image_shape[1]} ({_first_line(error)}): set image_size"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        f"the published weights of backbone {name!r} could not be fetched ({_first_line(error)}): give weights: none, "
        "or the path of a file that was fetched on a machine with a network"
    )
