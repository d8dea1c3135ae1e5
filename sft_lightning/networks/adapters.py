"""Adapters of peft: a frozen backbone learns by a few new parameters beside its layers, which merge into its weights.

With few labels, all weights of a large backbone are more than the labels can determine. `merging` is the way back.
"""

import math
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from sft_lightning.networks.modes import eval_mode
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.utils.errors import InputError, check_decay, check_min, check_positive

__all__ = ["IA3", "LoRA"]  # what a YAML can name


class Adapter(ABC):
    """What is put beside the layers of a backbone.

    Layers are `Linear` and ordinary `Conv2d` (neither grouped nor dilated, which peft cannot do or not merge) that the
    network calls. Some attention takes the weights past the layer, where an adapter would be ignored: that of
    torchvision's ViT and Swin, and the `qkv` of timm's BEiT, EVA and Swin V2. There only the other layers are adapted.
    """

    marker: ClassVar[str]  # how peft begins the name of every part that it adds

    def __init__(self, targets: list[str] | None = None) -> None:
        """Keeps the names.

        Args:
            targets: Names of layers, or their ends (`attn.qkv`, `fc1`); null for all layers but those that cut the
                picture into patches.
        """
        self.targets = targets

    @abstractmethod
    def _config(self, target_modules: str) -> Any:
        """The settings for peft."""

    def apply(self, backbone: Backbone) -> None:
        """Adapts a backbone in place and freezes all else in it. What it computes does not change yet.

        Args:
            backbone: Its `net` keeps its class and its names, except `LAYER.base_layer.weight` for `LAYER.weight`.

        Raises:
            InputError: No layer has such a name, or peft is not installed.
        """
        try:
            import peft
        except ImportError as error:
            raise InputError(
                f"adapter {type(self).__name__} needs the extra 'lora': pip install 'sft-lightning[lora]'"
            ) from error
        names = self._layers(backbone)
        peft.inject_adapter_in_model(self._config("|".join(map(re.escape, names))), backbone.net)
        backbone.net.to(memory_format=torch.channels_last)  # as the backbone's own kernels
        self.release(backbone.net)

    def _layers(self, backbone: Backbone) -> list[str]:
        """The names of the layers to adapt."""
        layers = _adaptable(backbone)
        if self.targets is None:
            return [name for name, layer in layers.items() if not _cuts_patches(layer)] or list(layers)
        chosen: set[str] = set()
        for target in self.targets or [""]:
            fitting = {name for name in layers if name == target or name.endswith(f".{target}")}
            if not fitting:
                some = ", ".join(list(layers)[:4])
                raise InputError(
                    f"targets is {self.targets}, but {target!r} ends the name of no layer of backbone "
                    f"{backbone.name!r} that can be adapted: give null for all, or some of its {len(layers)} layers "
                    f"such as {some}"
                )
            chosen |= fitting
        return [name for name in layers if name in chosen]

    def release(self, net: nn.Module, trainable: bool = True) -> None:
        """Trains the adapter and nothing else: the rest is in eval mode, so that no running statistics move.

        `Module.train()` undoes this; call it again after that.

        Args:
            net: An adapted network.
            trainable: False to freeze the adapter, too.
        """
        self.hold(net, trainable)
        net.requires_grad_(False)
        for p in self.list_parameters(net):
            p.requires_grad_(trainable)

    def hold(self, net: nn.Module, trainable: bool) -> None:
        """Put all but the adapter into evaluation mode.

        Args:
            net: An adapted network.
            trainable: Whether the adapter is trained.
        """
        net.eval()
        for name, module in net.named_modules():
            if self._is_own(name):  # its dropout
                module.train(trainable)

    def list_parameters(self, net: nn.Module) -> list[nn.Parameter]:
        """The parameters of the adapter, which are those to train.

        Args:
            net: An adapted network, or one that contains it.
        """
        return [p for name, p in net.named_parameters() if self._is_own(name)]

    def _is_own(self, name: str) -> bool:
        return f".{self.marker}" in f".{name}"


class LoRA(Adapter):
    """W + alpha / rank B A: a trained matrix of low rank on each weight (Hu et al. 2022)."""

    marker = "lora_"

    def __init__(
        self, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: list[str] | None = None
    ) -> None:
        """Checks the settings.

        Args:
            rank: Of B A.
            alpha: Scale of B A, before the division by the rank.
            dropout: Share of the inputs of A that is set to zero in training.
            targets: See `Adapter`.

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
            lora_alpha=self.alpha,  # type: ignore[arg-type] # a number, whatever peft says
            lora_dropout=self.dropout,
            target_modules=target_modules,
        )

    def apply(self, backbone: Backbone) -> None:
        """See `Adapter`."""
        super().apply(backbone)
        for layer in backbone.net.modules():
            if hasattr(layer, "lora_A"):
                # So that a checkpoint's tensors say all that it takes to merge them.
                layer.register_buffer("lora_scale", torch.tensor(layer.scaling["default"]))  # type: ignore[index]
                layer.register_load_state_dict_post_hook(_check_scale)
                layer.constant_buffers = ("lora_scale",)  # type: ignore[assignment]


class IA3(Adapter):
    """A trained factor on each output of each layer, which is the least that can be trained (Liu et al. 2022)."""

    marker = "ia3_"

    def _config(self, target_modules: str) -> Any:
        from peft import IA3Config

        return IA3Config(target_modules=target_modules, feedforward_modules=[])


def _check_scale(layer: Any, _: Any) -> None:
    """A checkpoint holds the scale that it was trained with, and would compute something else with another."""
    there, here = float(layer.lora_scale), layer.scaling["default"]
    if not math.isclose(there, here, rel_tol=0.01):  # half precision rounds it
        raise InputError(
            f"adapter LoRA has alpha / rank {here:g}, but the checkpoint was trained with {there:g}: give the alpha of "
            "its run"
        )


@torch.no_grad()
def _adaptable(backbone: Backbone) -> dict[str, nn.Linear | nn.Conv2d]:
    """All layers beside which an adapter can stand: of a kind that can be merged, and called by the network."""
    layers = {
        name: m for name, m in backbone.net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _merges(m)
    }
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    with eval_mode(backbone):
        backbone(torch.zeros(1, *backbone.image_shape, device=backbone.mean.device))
    for hook in hooks:
        hook.remove()
    if not called:
        raise InputError(
            f"backbone {backbone.name!r} has no Linear and no ordinary Conv2d layer that can be adapted: take another "
            "backbone, or no adapter"
        )
    return {name: layer for name, layer in layers.items() if layer in called}


def _merges(layer: nn.Linear | nn.Conv2d) -> bool:
    """Not a subclass, which may compute with other weights than it holds (timm's `ScaledStdConv2d`)."""
    if type(layer) is not nn.Conv2d:
        return type(layer) is nn.Linear
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _cuts_patches(layer: nn.Module) -> bool:
    """A convolution whose windows do not overlap, as at the entrance of a transformer; not one of single pixels."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride != (1, 1)
