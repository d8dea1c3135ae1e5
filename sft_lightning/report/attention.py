"""Grad-CAM: the regions of an image that support a class, Selvaraju et al. 2017."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from markupsafe import Markup
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.encoder import Encoder
from sft_lightning.report.explainer import Explainer
from sft_lightning.report.figures import embed_image, overlay_heat
from sft_lightning.utils.html import render_examples


class GradCAM(Explainer):
    """Images beside themselves under a heatmap."""

    title: ClassVar[str] = "Regions that support the prediction"
    note: ClassVar[str] = (
        "The most confident right and wrong predictions. Red and yellow support the predicted class (Grad-CAM)."
    )

    @cached_property
    def _module(self) -> nn.Module | None:
        # A network of inputs without height and width, such as waveforms, may have maps that lie elsewhere.
        has_sides = len(self.evaluation.data.input_spec.shape) == 3
        return find_last_map(self.evaluation.backbone) if has_sides else None

    @property
    def reason_against(self) -> str | None:
        """Sentence that says why heatmaps are missing, or None."""
        if self._module is None:
            return f"{self.evaluation.metadata['backbone']} has no feature maps, which Grad-CAM needs."
        if not self.evaluation.head:
            return "Grad-CAM needs a linear classifier, and this one compares examples with each other."
        return None

    def draw(self, name: str, positions: Sequence[int], classes: Tensor) -> list[Markup]:
        """Return each image, as people look at it, beside its heatmap."""
        data = self.evaluation.data
        x, module = data.inputs_of(name, [*positions]), self._module
        assert module is not None  # else there is a reason against it
        heat = compute_grad_cam(self.evaluation.backbone, self.evaluation.head, module, x, classes)
        # Evidence lies over an example as people see it, such as with low frequencies below.
        shown, over = data.views.show(x), data.views.show(heat.unsqueeze(1))
        assert isinstance(shown, Tensor)
        assert isinstance(over, Tensor)
        ids = [data.splits[name].ids[i] for i in positions]
        return [
            render_examples([embed_image(image, i), embed_image(overlay_heat(image, own), "Grad-CAM")], "pair")
            for image, own, i in zip(shown, over[:, 0], ids, strict=True)
        ]


def find_last_map(backbone: Encoder) -> nn.Module | None:
    """Return the last module whose output is a feature map larger than 1 x 1; None for a network without one.

    Args:
        backbone: Network in eval mode.
    """
    modules: list[nn.Module] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            modules.append(module)

    hooks = [module.register_forward_hook(record) for module in backbone.net.modules() if module is not backbone.net]
    try:
        with torch.no_grad():
            backbone(backbone.make_example())
    finally:
        for hook in hooks:
            hook.remove()
    return modules[-1] if modules else None


def compute_grad_cam(
    backbone: Encoder, head: Mapping[str, Tensor], module: nn.Module, x: Tensor, classes: Tensor
) -> Tensor:
    """Compute how much each pixel of the images supports a class.

    Args:
        backbone: Network in eval mode.
        head: Linear classifier: `weight` (C, F) and `bias` (C,).
        module: Module from `find_last_map`.
        x: Images, (B, C, H, W) in [0, 1].
        classes: Class of each image, int64, (B,).

    Returns:
        Heatmaps, (B, H, W), with a maximum of 1 in each image, or all 0 where nothing supports the class.
    """
    outputs: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    hook = module.register_forward_hook(record)
    try:
        with torch.enable_grad():
            # The input requires a gradient, so that the maps of a frozen network have one, too.
            features = backbone(x.detach().clone().requires_grad_(True))
            logits = F.linear(features, head["weight"], head["bias"])
            logits.gather(1, classes[:, None]).sum().backward()
    finally:
        hook.remove()
        backbone.zero_grad()
    (maps,) = outputs
    assert maps.grad is not None
    weights = maps.grad.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu().detach()
    heat = F.interpolate(heat, x.shape[2:], mode="bilinear")[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)
