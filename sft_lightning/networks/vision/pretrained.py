"""Networks of torchvision and timm without their classifier, and their published weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import nn

from sft_lightning.networks.encoder import get_architecture
from sft_lightning.networks.resampling import Filter, Tensors, keep_timm_filter, torchvision_filter
from sft_lightning.networks.vision.normalization import (
    Normalization,
    Stats,
    infer_timm_normalization,
    infer_torchvision_normalization,
)
from sft_lightning.utils.errors import InputError, did_you_mean


class LibraryNet(NamedTuple):
    """A network without its classifier.

    Attributes:
        net: Network from (B, 3, H, W) to (B, num_features).
        num_features: Number of output features.
        mean: Mean of the pixels that the weights were trained with.
        std: Standard deviation of the pixels that the weights were trained with.
        classifier: Name of the linear layer that was removed, or None if the classifier was not linear.
        library_filter: Function of the library that adapts published files, or None.
    """

    net: nn.Module
    num_features: int
    mean: Stats
    std: Stats
    classifier: str | None
    library_filter: Filter | None = None


def build_library_net(name: str, image_shape: Sequence[int], published: bool, others: Sequence[str]) -> LibraryNet:
    """Build a network of a library by its name.

    Args:
        name: `torchvision/NAME`, `timm/NAME`, or NAME, for which torchvision takes precedence.
        image_shape: Shape of the images, (C, H, W).
        published: Whether to load the published weights, which may be downloaded.
        others: Further valid names, for the error.

    Raises:
        InputError: The name is unknown, or the weights are unavailable.
    """
    library, rest = _split_name(name)
    if _is_torchvision(name):
        return _torchvision(name, rest, image_shape, published)
    import timm
    from torchvision.models import list_models

    if library != "torchvision" and timm.is_model(rest):
        return _timm(name, rest, image_shape, published)
    known = _list_names(name, torchvision=list_models(module=_torchvision_models()), timm=timm.list_models())
    raise InputError(
        f"backbone {name!r} is unknown{did_you_mean(name, [*others, *known])}: give {', '.join(others)} or a name of "
        "torchvision or timm"
    )


def list_published_names(like: str) -> list[str]:
    """List the networks of both libraries that have published weights.

    Args:
        like: Name whose form the names take: with their library where it has one.
    """
    import timm
    from torchvision.models import list_models

    return _list_names(like, torchvision=list_models(module=_torchvision_models()), timm=timm.list_pretrained())


def is_published(name: str) -> bool:
    """Return whether a name is that of a network of a library with published weights, which are not fetched.

    Args:
        name: Name of the network in torchvision or timm.
    """
    import timm

    library, model = _split_name(get_architecture(name))
    return _is_torchvision(get_architecture(name)) or (
        library != "torchvision" and timm.is_model(model) and timm.models.is_model_pretrained(model)
    )


def _list_names(like: str, **libraries: Sequence[str]) -> list[str]:
    return [f"{given}/{model}" if "/" in like else model for given, models in libraries.items() for model in models]


def fetch_published_weights(name: str) -> Tensors:
    """Fetch all published tensors of a library's network, including its classifier.

    Args:
        name: Name of the network in torchvision or timm.

    Raises:
        InputError: The weights are unavailable.
    """
    name = get_architecture(name)
    _, model = _split_name(name)
    try:
        if _is_torchvision(name):
            from torchvision.models import get_model_weights

            return dict(get_model_weights(model).DEFAULT.get_state_dict(progress=False, check_hash=True))
        import timm

        return dict(timm.create_model(model, pretrained=True).state_dict())
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise _download_error(name, error) from error


def _split_name(name: str) -> tuple[str, str]:
    library, _, model = name.partition("/")
    return (library, model) if library in ("torchvision", "timm") else ("", name)


def _is_torchvision(name: str) -> bool:
    from torchvision.models import list_models

    library, model = _split_name(name)
    return library != "timm" and model in list_models(module=_torchvision_models())


def _torchvision_models() -> Any:
    import torchvision.models

    return torchvision.models


def _torchvision(name: str, model: str, image_shape: Sequence[int], published: bool) -> LibraryNet:
    from torchvision.models import get_model, get_model_weights

    # The auxiliary outputs of Inception belong to its own training recipe.
    extra: dict[str, Any] = {"aux_logits": published} if model in ("googlenet", "inception_v3") else {}
    if model in ("googlenet", "inception_v3"):  # their normalization includes what `transform_input` would change
        extra.update(transform_input=False, init_weights=False)
    if model.startswith("vit_"):
        extra["image_size"] = image_shape[1]
    mean: Stats = 0.0
    std: Stats = 1.0
    try:
        choice = get_model_weights(model).DEFAULT if published else None
        if choice is not None:
            extra.pop("init_weights", None)
            mean, std, _ = infer_torchvision_normalization(model)
        net = get_model(model, weights=choice, **extra)
    except (URLError, OSError) as error:
        raise _download_error(name, error) from error
    except (AssertionError, ValueError) as error:
        raise _size_error(name, image_shape, error) from error
    if hasattr(net, "aux_logits"):
        net.aux_logits = False
        for side in ("aux1", "aux2", "AuxLogits"):
            if hasattr(net, side):
                setattr(net, side, None)
    classifier = _remove_classifier(net)
    return LibraryNet(net, _count_features(name, net, image_shape), mean, std, classifier, torchvision_filter)


def _remove_classifier(net: nn.Module) -> str | None:
    """Replace the classifier by an identity, and return the name of the linear layer, or None if it was not linear."""
    if type(net).__name__ == "SqueezeNet":  # its classifier is a convolution
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return None
    path: str = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, child = path.rpartition(".")
    owner = net.get_submodule(parent)
    if isinstance(owner, nn.Sequential):
        owner[int(child) if child.isdigit() else list(dict(owner.named_children())).index(child)] = nn.Identity()
    else:
        setattr(owner, child, nn.Identity())
    return path


@torch.no_grad()
def _count_features(name: str, net: nn.Module, image_shape: Sequence[int]) -> int:
    """Count the output features for one image, which also checks that the network accepts images of this size."""
    device = next(net.parameters()).device
    net.eval()
    try:
        features = net(torch.zeros(1, 3, *image_shape[1:], device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _size_error(name, image_shape, error) from error
    net.train()
    if features.ndim != 2:
        raise InputError(f"backbone {name!r} gives features of shape {tuple(features.shape[1:])}: take another one")
    return int(features.shape[1])


def _timm(name: str, model: str, image_shape: Sequence[int], published: bool) -> LibraryNet:
    import timm

    def create(published: bool) -> Any:
        try:
            return timm.create_model(model, pretrained=published, num_classes=0, img_size=image_shape[1])
        except TypeError:  # most convolutional networks accept any size and have no such argument
            return timm.create_model(model, pretrained=published, num_classes=0)

    filters: list[Filter] = []
    try:
        if published:
            net = create(True)
        else:
            with keep_timm_filter() as filters:
                net = create(True)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise (_download_error(name, error) if published else _size_error(name, image_shape, error)) from error
    config: dict[str, Any] = net.pretrained_cfg if published else {}
    features = _count_features(name, net, image_shape)
    classifier = net.pretrained_cfg.get("classifier")
    classifier = classifier if isinstance(classifier, str) else None  # distilled networks have two
    library_filter = filters[-1] if filters else None
    return LibraryNet(net, features, config.get("mean", 0.0), config.get("std", 1.0), classifier, library_filter)


def interpolate_positions(net: nn.Module) -> bool:
    """Let a vision transformer of timm take images of other sizes than its own; any other network stays as it is.

    Args:
        net: Network from images to features.

    Returns:
        Whether it is such a transformer.
    """
    if not type(net).__module__.startswith("timm."):
        return False
    from timm.models import VisionTransformer

    patch_embed: Any = getattr(net, "patch_embed", None)
    if not isinstance(net, VisionTransformer) or not hasattr(patch_embed, "strict_img_size"):
        return False
    # What the constructor does for `dynamic_img_size`, which would also let other uses pass a wrong size.
    transformer: Any = net
    transformer.dynamic_img_size = True
    patch_embed.strict_img_size = patch_embed.flatten = False
    patch_embed.output_fmt = type(patch_embed.output_fmt)("NHWC")
    return True


def infer_normalization(name: str, net: nn.Module, path: Path) -> Normalization:
    """Infer the normalization of published weights in a file that does not state it.

    Args:
        name: Name of the network in torchvision or timm.
        net: Network of that name.
        path: Path of the file.
    """
    if _is_torchvision(name):
        return infer_torchvision_normalization(_split_name(name)[1], path)
    return infer_timm_normalization(net.pretrained_cfg, path)  # type: ignore[arg-type]


def _size_error(name: str, image_shape: Sequence[int], error: Exception) -> InputError:
    return InputError(
        f"backbone {name!r} does not take images of side {image_shape[1]} ({_first_line(error)}): set image_size"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _download_error(name: str, error: Exception) -> InputError:
    return InputError(
        f"the published weights of backbone {name!r} could not be fetched ({_first_line(error)}): give weights: none, "
        "or the path of a file that was fetched on a machine with a network"
    )
