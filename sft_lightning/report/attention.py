"""Where a convolutional network looks: Grad-CAM, Selvaraju et al. 2017."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.vision.backbones import Backbone


def find_last_map(backbone: Backbone) -> nn.Module | None:
    """The last module whose output is a map of more than one place; None for a network without one.

    Args:
        backbone: In eval mode.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.append(module)

    hooks = [module.register_forward_hook(look) for module in backbone.net.modules() if module is not backbone.net]
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, *backbone.image_shape, device=backbone.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None


def compute_grad_cam(
    backbone: Backbone, head: Mapping[str, Tensor], module: nn.Module, x: Tensor, classes: Tensor
) -> Tensor:
    """How much each place of the pictures speaks for a class.

    Args:
        backbone: In eval mode.
        head: `weight` (C, F) and `bias` (C,).
        module: From `find_last_map`.
        x: (B, C, H, W) in [0, 1].
        classes: int64, (B,).

    Returns:
        (B, H, W), the largest of each picture 1; all 0 where nothing speaks for the class.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    hook = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            # The input asks for a gradient, so that frozen networks have one, too.
            features = backbone(x.detach().clone().requires_grad_(True))
            logits = F.linear(features, head["weight"], head["bias"])
            logits.gather(1, classes[:, None]).sum().backward()
    finally:
        hook.remove()
        backbone.zero_grad()
    (maps,) = kept
    assert maps.grad is not None
    weights = maps.grad.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu().detach()
    heat = F.interpolate(heat, x.shape[2:], mode="bilinear")[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)
