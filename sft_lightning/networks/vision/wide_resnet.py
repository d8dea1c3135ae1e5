"""Wide residual networks for small images: Zagoruyko & Komodakis 2016, "Wide Residual Networks"."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.1  # negative slope of LeakyReLU, as in FixMatch's network


class _Block(nn.Module):
    """Pre-activation residual block: norm, activation and convolution, twice."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(channels_in)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self._same = same

    def forward(self, x: Tensor) -> Tensor:
        active = F.leaky_relu(self.norm_1(x), _SLOPE)
        # Where the shape changes, the shortcut starts after the activation.
        shortcut: Tensor = self.shortcut(x if self._same else active)
        out: Tensor = self.conv_2(F.leaky_relu(self.norm_2(self.conv_1(active)), _SLOPE))
        return out + shortcut


class WideResNet(nn.Sequential):
    """WRN-depth-k from images (B, C, H, W) to features (B, 64 k).

    It has three stages of (depth - 4) / 6 blocks with 16 k, 32 k and 64 k channels. Reference setting: WRN-28-2.
    """

    def __init__(self, image_shape: Sequence[int], depth: int = 28, width: int = 2) -> None:
        """Build the layers.

        Args:
            image_shape: Shape of the images, (C, H, W), with any H and W.
            depth: Number of layers, 6 n + 4.
            width: Factor k of the number of channels.
        """
        channels = [16, 16 * width, 32 * width, 64 * width]
        stages = []
        for i, (a, b) in enumerate(pairwise(channels)):
            rest = [_Block(b, b, 1) for _ in range((depth - 4) // 6 - 1)]
            stages.append(nn.Sequential(_Block(a, b, 1 if i == 0 else 2), *rest))
        super().__init__(
            nn.Conv2d(image_shape[0], channels[0], 3, padding=1, bias=False),
            *stages,
            nn.Sequential(nn.BatchNorm2d(channels[-1]), nn.LeakyReLU(_SLOPE)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.num_features = channels[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, _SLOPE, mode="fan_out", nonlinearity="leaky_relu")
        self.to(memory_format=torch.channels_last)
