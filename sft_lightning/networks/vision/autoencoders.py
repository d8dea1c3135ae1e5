"""Encoders and decoders: the MLP of the reference setting, and a small convolutional pair for any image size."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLPEncoder(nn.Sequential):
    """MLP from images (B, C, H, W) to features (B, 32): linear layers of 128, 64 and 32 outputs, each with a ReLU."""

    def __init__(self, image_shape: Sequence[int], widths: Sequence[int] = (128, 64, 32)) -> None:
        """Build the layers.

        Args:
            image_shape: Shape of the images, (C, H, W).
            widths: Number of outputs of each layer; the last is the number of features.
        """
        sizes = [math.prod(image_shape), *widths]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        super().__init__(nn.Flatten(), *layers)
        self.num_features = widths[-1]


class MLPDecoder(nn.Module):
    """MLP from features (B, 32) to images (B, C, H, W): the mirrored encoder with a sigmoid at the end."""

    def __init__(self, image_shape: Sequence[int], widths: Sequence[int] = (32, 64, 128)) -> None:
        """Build the layers.

        Args:
            image_shape: Shape of the images, (C, H, W).
            widths: Number of features, then of outputs of each hidden layer.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(image_shape)), nn.Sigmoid())
        self.image_shape = tuple(image_shape)

    def forward(self, features: Tensor) -> Tensor:
        """Decode images from features.

        Args:
            features: Features, (B, 32).

        Returns:
            Images in [0, 1], (B, C, H, W).
        """
        images: Tensor = self.layers(features)
        return images.view(-1, *self.image_shape)


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class ConvEncoder(nn.Sequential):
    """CNN from images (B, C, H, W) to features (B, 128).

    It has five 3x3 convolutions of 32, 32, 64, 64 and 128 channels and global average pooling.
    """

    num_features = 128

    def __init__(self, image_shape: Sequence[int]) -> None:
        """Build the layers.

        Args:
            image_shape: Shape of the images, (C, H, W), with any H and W.
        """
        super().__init__(
            _conv(image_shape[0], 32),
            _conv(32, 32, stride=2),
            _conv(32, 64),
            _conv(64, 64, stride=2),
            _conv(64, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.to(memory_format=torch.channels_last)  # two to three times faster on a CPU


class ConvDecoder(nn.Module):
    """CNN from features (B, F) to images (B, C, H, W) of any size in [0, 1]."""

    def __init__(self, image_shape: Sequence[int], num_features: int) -> None:
        """Build the layers.

        Args:
            image_shape: Shape of the images, (C, H, W).
            num_features: Number of features F.
        """
        super().__init__()
        channels, height, width = image_shape
        self.sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (4, 2, 1)]
        h, w = self.sizes[0]
        self.spread = nn.Sequential(nn.Linear(num_features, 64 * h * w), nn.ReLU(), nn.Unflatten(1, (64, h, w)))
        self.stages = nn.ModuleList([_conv(64, 32), _conv(32, 16)])
        self.last = nn.Conv2d(16, channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Tensor) -> Tensor:
        """Decode images from features.

        Args:
            features: Features, (B, F).

        Returns:
            Images in [0, 1], (B, C, H, W).
        """
        x = self.spread(features)
        for stage, size in zip(self.stages, self.sizes[1:], strict=True):
            x = stage(F.interpolate(x, size=size, mode="nearest"))
        return torch.sigmoid(self.last(x))
