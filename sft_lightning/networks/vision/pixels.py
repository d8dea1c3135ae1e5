"""Pixels as features, for classifiers without a network."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

MAX_SIDE = 32  # pixels: principal components of larger images see little more, and take hours


def shrink_images(x: Tensor) -> Tensor:
    """Average images down to at most 32 pixels a side.

    Args:
        x: Images, (B, C, H, W).
    """
    height, width = x.shape[2:]
    if max(height, width) <= MAX_SIDE:
        return x
    return F.adaptive_avg_pool2d(x.float(), (min(height, MAX_SIDE), min(width, MAX_SIDE)))


class Pixels(nn.Module):
    """Pixels of images, averaged down to at most 32 a side; without weights.

    Attributes:
        num_features: Number of values of an image.
    """

    def __init__(self, image_shape: Sequence[int]) -> None:
        """Count the values.

        Args:
            image_shape: Shape of the images, (C, H, W).
        """
        super().__init__()
        channels, height, width = image_shape
        self.num_features = channels * min(height, MAX_SIDE) * min(width, MAX_SIDE)

    @staticmethod
    def average(x: Tensor, strides: Sequence[int]) -> list[Tensor]:
        """Return the means of squares of pixels, (B, C, ceil(H / stride), ceil(W / stride)) each.

        Args:
            x: Images, (B, C, H, W).
            strides: Sides of the squares in pixels, about where they do not divide the image.
        """
        height, width = x.shape[-2:]
        return [F.adaptive_avg_pool2d(x, (-(-height // stride), -(-width // stride))) for stride in strides]

    def forward(self, x: Tensor) -> Tensor:
        """Flatten images, (B, C, H, W) to (B, num_features).

        Args:
            x: Images.
        """
        return shrink_images(x).flatten(1)
