"""Adapters merged into the weights beside which they stand, from the tensors alone: they say all that it takes."""

from collections.abc import Mapping

from torch import Tensor


def merge_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merges LoRA (W + scale B A) and (IA)^3 (a factor on each output) of `sft_lightning.networks.adapters`.

    Args:
        tensors: Of an adapted network under its names with any prefix: a state dict, or a checkpoint's part of it.

    Returns:
        Tensors under the names of the plain network with the same prefix; those without an adapter as they are.
    """
    plain = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".base_layer.")  # a network of timm has a `base_layer` of its own
        if f"{layer}.lora_scale" in tensors:
            plain[f"{layer}.{kind}"] = tensor + _low_rank(tensors, layer, tensor) if kind == "weight" else tensor
        elif f"{layer}.ia3_l.default" in tensors:
            factor = tensors[f"{layer}.ia3_l.default"].flatten()
            plain[f"{layer}.{kind}"] = tensor * factor.view(-1, *[1] * (tensor.ndim - 1))
        elif ".lora_" not in name and ".ia3_" not in name:
            plain[name] = tensor
    return plain


def _low_rank(tensors: Mapping[str, Tensor], layer: str, like: Tensor) -> Tensor:
    a, b = (tensors[f"{layer}.lora_{part}.default.weight"].flatten(1) for part in "AB")
    return (tensors[f"{layer}.lora_scale"] * (b @ a)).view_as(like)
