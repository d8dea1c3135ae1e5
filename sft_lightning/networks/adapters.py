"""Parameter-efficient adapters: a frozen backbone learns through a few new parameters beside its layers.

A few labels cannot determine all weights of a large backbone. `merge_weights` turns an adapted network back into a
plain one.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.errors import InputError, check_decay, check_min, check_positive

__all__ = ["IA3", "LoRA"]  # what YAML can name


class Adapter(ABC):
    """Base class of adapters, which put trained parameters beside frozen layers of a backbone.

    Layers are `Linear` and plain `Conv2d` modules that the network calls; peft cannot adapt or merge grouped and
    dilated convolutions. Some attention modules read the weights of a layer without calling it, so that an adapter
    would be ignored: those of torchvision's ViT and Swin, and the `qkv` of timm's BEiT, EVA and Swin V2. There only the
    other layers are adapted.
    """

    marker: ClassVar[str]  # prefix of the name of every module that peft adds

    def __init__(self, targets: list[str] | None = None) -> None:
        """Store the names of layers.

        Args:
            targets: Names of layers or ends of names (`attn.qkv`, `fc1`); null for all layers except those that cut the
                input into patches.
        """
        self.targets = targets

    @abstractmethod
    def _config(self, target_modules: str) -> Any:
        """Return the config for peft."""

    def apply(self, backbone: Encoder) -> None:
        """Adapt a backbone in place and freeze the rest of it; its outputs do not change yet.

        Args:
            backbone: Backbone whose `net` keeps its class and its names, except that `LAYER.weight` becomes
                `LAYER.base_layer.weight`.

        Raises:
            InputError: No layer fits `targets`, or peft is not installed.
        """
        try:
            import peft
        except ImportError as error:
            raise InputError(
                f"adapter {type(self).__name__} needs the extra 'lora': pip install 'sft-lightning[lora]'"
            ) from error
        names = self._find_layers(backbone)
        peft.inject_adapter_in_model(self._config("|".join(map(re.escape, names))), backbone.net)
        backbone.net.to(memory_format=torch.channels_last)  # the memory format of the backbone's kernels
        self.set_trainable(backbone.net)

    def _find_layers(self, backbone: Encoder) -> list[str]:
        """Return the names of the layers to adapt."""
        layers = _find_adaptable(backbone)
        if self.targets is None:
            return [name for name, layer in layers.items() if not _is_patch_embedding(layer)] or list(layers)
        chosen: set[str] = set()
        for target in self.targets or [""]:
            matches = {name for name in layers if name == target or name.endswith(f".{target}")}
            if not matches:
                some = ", ".join(list(layers)[:4])
                raise InputError(
                    f"targets is {self.targets}, but {target!r} ends the name of no layer of backbone "
                    f"{backbone.name!r} that can be adapted: give null for all, or some of its {len(layers)} layers "
                    f"such as {some}"
                )
            chosen |= matches
        return [name for name in layers if name in chosen]

    def set_trainable(self, net: nn.Module, trainable: bool = True) -> None:
        """Train the adapter alone; the rest is in eval mode, so that no running statistics move.

        `Module.train()` undoes this; call it again after that.

        Args:
            net: Adapted network.
            trainable: Whether to train the adapter; false freezes it, too.
        """
        self.set_modes(net, trainable)
        net.requires_grad_(False)
        for p in self.list_parameters(net):
            p.requires_grad_(trainable)

    def set_modes(self, net: nn.Module, trainable: bool) -> None:
        """Put everything but the adapter into eval mode.

        Args:
            net: Adapted network.
            trainable: Whether the adapter is trained.
        """
        net.eval()
        for name, module in net.named_modules():
            if self._is_part(name):  # its dropout
                module.train(trainable)

    def list_parameters(self, net: nn.Module) -> list[nn.Parameter]:
        """List the parameters that are trained: those of the adapter, and of a pooling, which is new as well.

        Args:
            net: Adapted network, or a module that contains it.
        """
        pooling = [name for name, m in net.named_modules() if getattr(m, "is_pooling", False)]
        return [p for name, p in net.named_parameters() if self._is_part(name) or name.rpartition(".")[0] in pooling]

    def _is_part(self, name: str) -> bool:
        return f".{self.marker}" in f".{name}"


class LoRA(Adapter):
    """A trained low-rank matrix added to each weight, W + alpha / rank B A (Hu et al. 2022, "LoRA")."""

    marker = "lora_"

    def __init__(
        self, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: list[str] | None = None
    ) -> None:
        """Check and store the settings.

        Args:
            rank: Rank of B A.
            alpha: Scale of B A before the division by the rank.
            dropout: Probability that an input of A is set to zero in training.
            targets: Names of layers or ends of names (`attn.qkv`, `fc1`); null for all layers except those that cut the
                input into patches.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(targets)
        check_min(1, rank=rank)
        check_positive(alpha=alpha)
        check_decay(dropout=dropout)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def _config(self, target_modules: str) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type] # peft's annotation says int, its code takes any number
            lora_dropout=self.dropout,
            target_modules=target_modules,
        )

    def apply(self, backbone: Encoder) -> None:
        """Adapt a backbone in place, and store the scale of B A beside the matrices.

        Args:
            backbone: Backbone to adapt.
        """
        super().apply(backbone)
        for layer in backbone.net.modules():
            if hasattr(layer, "lora_A"):
                # So that the tensors of a checkpoint suffice for merging.
                layer.register_buffer("lora_scale", torch.tensor(layer.scaling["default"]))  # type: ignore[index]
                layer.register_load_state_dict_post_hook(_check_scale)
                layer.constant_buffers = ("lora_scale",)  # type: ignore[assignment]


class IA3(Adapter):
    """A trained factor for each output of each layer, the smallest of adapters (Liu et al. 2022, "(IA)^3")."""

    marker = "ia3_"

    def _config(self, target_modules: str) -> Any:
        from peft import IA3Config

        return IA3Config(target_modules=target_modules, feedforward_modules=[])


def _check_scale(layer: Any, _: Any) -> None:
    """Refuse a checkpoint that was trained with another scale, since it would compute something else."""
    trained, current = float(layer.lora_scale), layer.scaling["default"]
    if not math.isclose(trained, current, rel_tol=0.01):  # half precision rounds it
        raise InputError(
            f"adapter LoRA has alpha / rank {current:g}, but the checkpoint was trained with {trained:g}: give the "
            "alpha of its run"
        )


@torch.no_grad()
def _find_adaptable(backbone: Encoder) -> dict[str, nn.Linear | nn.Conv2d]:
    """Find the layers that can be adapted: of a kind that can be merged, and called by the network."""
    layers = {
        name: m
        for name, m in backbone.net.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and _is_mergeable(m)
    }
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    with eval_mode(backbone):
        backbone(backbone.make_example())
    for hook in hooks:
        hook.remove()
    if not called:
        raise InputError(
            f"backbone {backbone.name!r} has no Linear and no ordinary Conv2d layer that can be adapted: take another "
            "backbone, or no adapter"
        )
    return {name: layer for name, layer in layers.items() if layer in called}


def _is_mergeable(layer: nn.Linear | nn.Conv2d) -> bool:
    """Return whether an adapter can be merged into a layer.

    A subclass may compute with other weights than it holds (timm's `ScaledStdConv2d`).
    """
    if type(layer) is not nn.Conv2d:
        return type(layer) is nn.Linear
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _is_patch_embedding(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution with windows of several pixels that do not overlap."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride != (1, 1)


def merge_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge adapters into the weights that they belong to; the tensors alone suffice.

    Args:
        tensors: Tensors of an adapted network by name, with any prefix: a state dict or a part of a checkpoint.

    Returns:
        Tensors under the names of the plain network, with the same prefix; those without an adapter unchanged.
    """
    plain = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".base_layer.")  # timm's DLA has a module `base_layer`, too
        if f"{layer}.lora_scale" in tensors:
            plain[f"{layer}.{kind}"] = tensor + _multiply(tensors, layer, tensor) if kind == "weight" else tensor
        elif f"{layer}.ia3_l.default" in tensors:
            factor = tensors[f"{layer}.ia3_l.default"].flatten()
            plain[f"{layer}.{kind}"] = tensor * factor.view(-1, *[1] * (tensor.ndim - 1))
        elif ".lora_" not in name and ".ia3_" not in name:
            plain[name] = tensor
    return plain


def _multiply(tensors: Mapping[str, Tensor], layer: str, like: Tensor) -> Tensor:
    a, b = (tensors[f"{layer}.lora_{part}.default.weight"].flatten(1) for part in "AB")
    return (tensors[f"{layer}.lora_scale"] * (b @ a)).view_as(like)
