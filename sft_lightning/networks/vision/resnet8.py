"""Residual network of eight layers for small images: He et al. 2016, "Deep Residual Learning for Image Recognition"."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or stride != 1:
            project = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm_2(self.conv_2(F.relu(self.norm_1(self.conv_1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet8(nn.Sequential):
    """ResNet of 307,000 parameters from images (B, C, H, W) to features (B, 128).

    A 5x5 stem of stride 2 and three blocks of 32, 64 and 128 channels, the last two of stride 2, so that the map of a
    28x28 image has 4x4 cells. A step takes about two thirds of the time of `conv`.
    """

    num_features = 128

    def __init__(self, image_shape: Sequence[int], widths: Sequence[int] = (32, 32, 64, 128)) -> None:
        """Build the layers.

        Args:
            image_shape: Shape of the images, (C, H, W), with any H and W.
            widths: Number of channels of the stem and of each block.
        """
        stem = nn.Conv2d(image_shape[0], widths[0], 5, 2, padding=2, bias=False)
        blocks = [_Block(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths))]
        super().__init__(
            nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU()), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # two to three times faster on a CPU
