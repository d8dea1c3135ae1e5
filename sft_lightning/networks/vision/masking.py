"""Decoders of masked autoencoders: from the visible patches of an image to the hidden ones.

A vision transformer encodes the visible patches alone, and a small transformer predicts the others (He et al. 2022,
"Masked Autoencoders Are Scalable Vision Learners"). A convolutional network cannot leave patches out: it sees them in
the mean color of its normalization, and one layer on its last map predicts them (Xie et al. 2022, "SimMIM: A Simple
Framework for Masked Image Modeling"). The decoders of `AutoencoderModule` would not do: they start from pooled features
and end in pixels from 0 to 1, which normalized pixels are not.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.encoder import Encoder, MaskedDecoder
from sft_lightning.utils.errors import InputError

_HEAD = 32  # channels of an attention head of the decoder
_SHARE = 7  # a convolutional network's patch is at most this part of the side, as 32 of 224 pixels


class Tokens(NamedTuple):
    """Tokens of a vision transformer.

    Attributes:
        entry: Module whose output are the embedded tokens, before the first block.
        exit: Module whose output are the tokens after the last block.
        prefix: Number of tokens before those of the patches.
        grid: Number of patches along a side.
        width: Number of channels of a token.
    """

    entry: nn.Module
    exit: nn.Module
    prefix: int
    grid: int
    width: int


def find_tokens(net: nn.Module) -> Tokens | None:
    """Find the tokens of a vision transformer of torchvision or timm; None for any other network.

    Args:
        net: Network from images to features.
    """
    from torchvision.models import VisionTransformer

    if isinstance(net, VisionTransformer):
        grid = net.image_size // net.patch_size
        return Tokens(net.encoder.dropout, net.encoder, 1, grid, net.hidden_dim)
    if type(net).__module__.startswith("timm."):
        from timm.models import VisionTransformer as TimmTransformer  # slow to import

        if isinstance(net, TimmTransformer):
            timm_net: Any = net
            grid = timm_net.patch_embed.grid_size[0]
            return Tokens(timm_net.patch_drop, timm_net.norm, timm_net.num_prefix_tokens, grid, timm_net.embed_dim)
    return None


class PatchDecoder(MaskedDecoder):
    """A decoder of square patches of images."""

    def __init__(self, image_shape: Sequence[int], patch: int) -> None:
        """Keep the sizes.

        Args:
            image_shape: Shape of the images, (C, H, W).
            patch: Side of a patch in pixels, a divisor of H and W.
        """
        super().__init__()
        self.image_shape, self.patch = tuple(image_shape), patch
        channels, height, width = self.image_shape
        self.rows, self.columns = height // patch, width // patch
        self.num_patches, self.patch_size = self.rows * self.columns, channels * patch**2

    def split(self, x: Tensor) -> Tensor:
        """Split images into patches, (B, N, C * patch * patch)."""
        return F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def merge(self, patches: Tensor) -> Tensor:
        """Put patches together to images, (B, C, H, W)."""
        return F.fold(patches.transpose(1, 2), self.image_shape[1:], self.patch, stride=self.patch)


class TokenDecoder(PatchDecoder):
    """A small transformer on the tokens of the visible patches, with a learned token in place of each hidden one.

    Positions of the decoder are sines and cosines; those of the encoder are its own.
    """

    positions: Tensor

    def __init__(
        self, tokens: Tokens, name: str, image_shape: Sequence[int], patch: int | None, width: int, depth: int
    ) -> None:
        """Build the decoder, and let the encoder leave hidden patches out.

        Args:
            tokens: Tokens of the encoder.
            name: Name of the encoder for errors.
            image_shape: Shape of the images, (C, H, W).
            patch: Side of the encoder's patches in pixels, or None.
            width: Number of channels, a multiple of 32.
            depth: Number of blocks.

        Raises:
            InputError: The encoder has patches of another size, or `width` is not a multiple of 32.
        """
        side = image_shape[1] // tokens.grid
        if patch not in (None, side):
            raise InputError(f"patch is {patch}, but backbone {name!r} has patches of {side} pixels: leave it out")
        if width % _HEAD:
            raise InputError(f"decoder_width is {width}: give a multiple of {_HEAD}")
        super().__init__(image_shape, side)
        self._prefix = tokens.prefix
        self.embed = nn.Linear(tokens.width, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        blocks = [
            nn.TransformerEncoderLayer(width, width // _HEAD, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, self.patch_size)
        self.register_buffer("positions", embed_positions(self.rows, self.columns, width), persistent=False)
        self._visible: Tensor | None = None
        self._encoded: Tensor | None = None
        # Hooks on public modules keep the network as its library made it, so that weights fit it before and after.
        tokens.entry.register_forward_hook(self._leave_out)
        tokens.exit.register_forward_hook(self._keep)

    def _leave_out(self, module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
        if self._visible is None:
            return tokens
        patches = _select(tokens[:, self._prefix :], self._visible)
        return torch.cat([tokens[:, : self._prefix], patches], 1)

    def _keep(self, module: nn.Module, args: Any, tokens: Tensor) -> None:
        if self._visible is not None:
            self._encoded = tokens

    def forward(self, encoder: Encoder, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the visible patches and predict all of them."""
        self._visible = visible
        try:
            features = encoder(x)
            assert self._encoded is not None
            tokens = self.embed(self._encoded)
        finally:
            self._visible = self._encoded = None
        prefix, patches = tokens[:, : self._prefix], tokens[:, self._prefix :]
        rows = visible.unsqueeze(-1).expand_as(patches)
        masked = self.mask_token.to(patches.dtype).expand(len(x), self.num_patches, -1)
        tokens = torch.cat([prefix, masked.scatter(1, rows, patches) + self.positions], 1)
        return self.head(self.blocks(tokens)[:, self._prefix :]), features


class MapDecoder(PatchDecoder):
    """One layer on the last map of a convolutional network, which sees hidden patches in the mean color.

    Each cell of the map predicts the pixels that it stands for.
    """

    def __init__(
        self, encoder: Encoder, pool: nn.Module, name: str, image_shape: Sequence[int], patch: int | None
    ) -> None:
        """Build the layer, and keep what the encoder pools.

        Args:
            encoder: Encoder with the `mean` of its normalization.
            pool: Its module that pools the last map.
            name: Name of the encoder for errors.
            image_shape: Shape of the images, (C, H, W).
            patch: Side of a patch in pixels; None for the largest divisor of the sides up to a seventh.

        Raises:
            InputError: `patch` does not divide the sides, or the network pools something else than a map.
        """
        channels, *sides = image_shape
        common = math.gcd(*sides)
        patch = patch or max(side for side in range(1, max(1, min(sides) // _SHARE) + 1) if common % side == 0)
        if common % patch:
            raise InputError(f"patch is {patch}, but images have {sides[0]}x{sides[1]} pixels: give a common divisor")
        super().__init__(image_shape, patch)
        self._map: Tensor | None = None
        self._keeps = False
        pool.register_forward_pre_hook(self._keep)
        modes = {module: module.training for module in encoder.modules()}
        with torch.no_grad():
            cells = self._encode(encoder.eval(), encoder.make_example())[1]
        for module, mode in modes.items():
            module.training = mode
        if cells.ndim != 4 or getattr(pool, "input_fmt", "NCHW") != "NCHW":
            raise InputError(f"backbone {name!r} pools no map of channels, so MAE cannot train it: choose another one")
        self._scale: int = max(math.ceil(side / size) for side, size in zip(sides, cells.shape[2:], strict=True))
        self.head = nn.Conv2d(cells.shape[1], channels * self._scale**2, 1)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._keeps:
            self._map = args[0]

    def _encode(self, encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
        self._keeps = True
        try:
            features = encoder(x)
            assert self._map is not None
            return features, self._map
        finally:
            self._keeps, self._map = False, None

    def forward(self, encoder: Encoder, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images whose hidden patches have the mean color, and predict all patches."""
        seen = torch.zeros(len(x), self.num_patches, dtype=torch.bool, device=x.device).scatter(1, visible, True)
        seen = seen.view(-1, 1, self.rows, self.columns)
        seen = seen.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        mean: Tensor = encoder.mean  # type: ignore[assignment]
        # Gray images get the channels of the mean.
        features, cells = self._encode(encoder, torch.where(seen, x, mean.to(x.dtype)))
        pixels = F.pixel_shuffle(self.head(cells), self._scale)
        return self.split(pixels[..., : x.shape[2], : x.shape[3]]), features


def embed_positions(rows: int, columns: int, width: int) -> Tensor:
    """Embed the positions of a grid: a quarter each of sines and cosines of the column and of the row.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        width: Number of channels, a multiple of 4.

    Returns:
        Embeddings, (rows * columns, width).
    """
    rates = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.arange(rows), torch.arange(columns)
    angles = torch.cat([torch.cartesian_prod(row, column).double()[:, [i]] * rates for i in (1, 0)], 1)
    across, down = angles.chunk(2, 1)
    return torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], 1).float()


def _select(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
