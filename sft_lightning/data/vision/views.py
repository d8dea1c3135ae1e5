"""Views that turn uint8 images into network inputs: one batch at a time, on its device, random per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.modality import Views
from sft_lightning.data.vision.affine import crop, draw_affine, draw_crops, resample
from sft_lightning.data.vision.pretrain_views import PretrainView, make_local_view, make_pretrain_view
from sft_lightning.data.vision.randaugment import cutout, grayscale, randaugment
from sft_lightning.utils.errors import InputError, check_fraction, check_min, did_you_mean
from sft_lightning.utils.transfer import to_device

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_APART = 0x9E3779B9  # distance between the seeds of the views of a batch; 32 bits, all that torch's CPU generator uses
_PRETRAIN = 4  # number of the first view for pre-training; 0 and 1 are weak views, 2 and 3 make the strong one


@dataclass(frozen=True)
class WeakView:
    """Mild random changes that keep the class of an image. By default, images pass unchanged.

    Attributes:
        flip: Mirror half of the images left to right. Digits and letters must not be flipped.
        crop_padding: Maximum shift in pixels; zeros (black) fill the border.
        crop_scale: Smallest and largest share of the area that a random crop keeps, as in [0.08, 1.0], or null.
        rotation: Maximum rotation in degrees, in either direction.
        translation: Maximum shift as a share of the side, in either direction; black fills the border.
        scale: Smallest and largest factor of a random zoom, as in [0.9, 1.1], or null.
        shear: Maximum shear in degrees, along the rows.
    """

    flip: bool = False
    crop_padding: int = 0
    crop_scale: list[float] | None = None
    rotation: float = 0.0
    translation: float = 0.0
    scale: list[float] | None = None
    shear: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_min(0, crop_padding=self.crop_padding, rotation=self.rotation, shear=self.shear)
        check_fraction(translation=self.translation)
        if self.scale is not None and not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1]):
            raise InputError(f"scale is {self.scale}: give two factors such as [0.9, 1.1]")
        if self.shear >= 90:
            raise InputError(f"shear is {self.shear}: give fewer than 90 degrees")
        scale = self.crop_scale
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise InputError(f"crop_scale is {scale}: give two shares of the area such as [0.08, 1.0]")

    @property
    def is_affine(self) -> bool:
        """Whether images are rotated, shifted, scaled or sheared."""
        return bool(self.rotation or self.translation or self.scale or self.shear)

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        return bool(self.flip or self.crop_padding or self.crop_scale or self.is_affine)


@dataclass(frozen=True)
class StrongView:
    """Strong changes applied after a weak view: RandAugment, then Cutout.

    Attributes:
        operations: Number of RandAugment operations per image, drawn from fourteen.
        cutout: Side of the covered square as a share of the side of the image, 0 for none.
    """

    operations: int = 2
    cutout: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_min(0, operations=self.operations)
        check_fraction(cutout=self.cutout)

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        return self.operations > 0 or self.cutout > 0


View = TypeVar("View", bound="DataclassInstance")


def make_view(kind: type[View], given: View | Mapping[str, Any], name: str) -> View:
    """Return a view, converted from a mapping of its fields if needed, as in YAML.

    Args:
        kind: Class of the view.
        given: View, or its fields by name.
        name: Name of the setting.

    Raises:
        InputError: The value is neither a view nor a mapping, or the mapping has other fields.
    """
    if isinstance(given, kind):
        return given
    known = [field.name for field in fields(kind)]
    if not isinstance(given, Mapping):
        raise InputError(f"{name} is {given!r:.60}: give a {kind.__name__}, or a mapping with {', '.join(known)}")
    for key in given:
        if key not in known:
            raise InputError(f"{name} has {key!r}{did_you_mean(str(key), known)}: give some of {', '.join(known)}")
    try:
        return kind(**given)
    except TypeError as error:  # a text in the place of a number
        raise InputError(f"{name} is {dict(given)} ({error}): give numbers") from error


def make_pretrain_views(
    first: PretrainView, second: PretrainView | None, local: PretrainView | None
) -> tuple[list[PretrainView], PretrainView | None]:
    """Return the views for self-supervised pre-training, converted from mappings if needed.

    Args:
        first: Setting `pretrain_view`.
        second: Setting `pretrain_view_2`.
        local: Setting `pretrain_view_local`.

    Returns:
        Views that take turns, and the local view if it is set.

    Raises:
        InputError: A view has an invalid value, or one that is not local has a side of its own.
    """
    given = {"pretrain_view": first, "pretrain_view_2": second}
    views = {name: make_view(PretrainView, view, name) for name, view in given.items() if view is not None}
    for name, view in views.items():
        if view.side is not None:
            raise InputError(f"{name} has a side, {view.side}: set image_size, or the side of pretrain_view_local")
    return [*views.values()], None if local is None else make_view(PretrainView, local, "pretrain_view_local")


def to_float(images: Tensor, channels: int, size: int | None) -> Tensor:
    """Convert images to pixels in [0, 1] with the requested number of channels and side.

    Args:
        images: Images, uint8 of shape (B, C, H, W).
        channels: Number of channels, 1 or 3.
        size: Side in pixels, or None to keep it.

    Returns:
        Pixels, float32 of shape (B, channels, size, size).
    """
    x = images.float().div_(255)
    if channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    elif channels == 1 and x.shape[1] == 3:
        x = grayscale(x)
    if size is not None and x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


class Moves(NamedTuple):
    """Random movements of the pixels of a batch, which its images and their masks follow alike.

    Attributes:
        crop: Map of each crop, (B, 2, 3), as `draw_crops` gives it; None for none.
        corner: Rows and columns of the upper left corners in padded images, int64, (2, B); None for none.
        flipped: Which images are mirrored left to right, boolean, (B,); None for none.
        source: Affine map of each image, (B, 2, 3), as `draw_affine` gives it; None for none.
        pad: Width of the padding in pixels.
    """

    crop: Tensor | None
    corner: Tensor | None
    flipped: Tensor | None
    source: Tensor | None
    pad: int

    def apply(self, x: Tensor, mode: str = "bilinear") -> Tensor:
        """Move the pixels of a batch; zeros come in at the borders.

        Args:
            x: Images or masks, float of shape (B, C, H, W).
            mode: Interpolation: `bilinear`, or `nearest` for masks.
        """
        count, _, height, width = x.shape
        if self.crop is not None:
            x = crop(x, self.crop, mode=mode)
        if self.corner is not None:
            pad = self.pad
            top, left = to_device(self.corner, x.device)
            rows = top[:, None] + torch.arange(height, device=x.device)
            columns = left[:, None] + torch.arange(width, device=x.device)
            padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
            each = torch.arange(count, device=x.device)[:, None, None]
            x = padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flipped is not None:
            x = torch.where(to_device(self.flipped, x.device).view(-1, 1, 1, 1), x.flip(-1), x)
        return x if self.source is None else resample(x, self.source, mode)


def draw_moves(view: WeakView, count: int, sides: Sequence[int], seed: int, number: int = 0) -> Moves:
    """Draw the movements of a weak view.

    Args:
        view: Movements to draw.
        count: Number of images B.
        sides: Height and width of the images.
        seed: Seed of this batch.
        number: Number of this view in the batch; each has its own random stream.
    """
    # Drawn on the CPU, so that every device gets the same numbers, of which there are few.
    generator = make_generator(seed, number)
    cut = None if view.crop_scale is None else draw_crops(count, view.crop_scale, generator)
    pad = view.crop_padding
    corner = torch.randint(0, 2 * pad + 1, (2, count), generator=generator) if pad else None
    flipped = torch.rand(count, generator=generator) < 0.5 if view.flip else None
    ranges = view.rotation, view.translation, view.scale or (1, 1), view.shear
    source = draw_affine(count, sides, *ranges, generator) if view.is_affine else None
    return Moves(cut, corner, flipped, source, pad)


def weak(x: Tensor, view: WeakView, seed: int | None, number: int = 0) -> Tensor:
    """Apply the random changes of a weak view.

    Args:
        x: Pixels, float of shape (B, C, H, W).
        view: Changes to apply.
        seed: Seed of this batch; None to leave the images unchanged.
        number: Number of this view in the batch; each has its own random stream.
    """
    if seed is None or not view:
        return x
    return draw_moves(view, len(x), x.shape[-2:], seed, number).apply(x)


def strong(x: Tensor, weak_view: WeakView, view: StrongView, seed: int) -> Tensor:
    """Apply a weak view with its own randomness, then RandAugment and Cutout.

    Args:
        x: Pixels in [0, 1], float of shape (B, C, H, W).
        weak_view: Weak changes, applied first.
        view: Strong changes, applied second.
        seed: Seed of this batch.
    """
    x = weak(x, weak_view, seed, 2)
    generator = make_generator(seed, 3)
    if view.operations:
        x = randaugment(x, view.operations, generator)
    return cutout(x, view.cutout, generator) if view.cutout else x


class ImageViews(Views):
    """The views of images."""

    inputs_name: ClassVar[str] = "pixels"

    def __init__(
        self,
        image_shape: Sequence[int],
        weak_view: WeakView,
        strong_view: StrongView,
        pretrain_views: Sequence[PretrainView] = (PretrainView(),),
        local_view: PretrainView | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            image_shape: Shape (C, H, W) of the views.
            weak_view: Random changes of the weak view.
            strong_view: Changes that a strong view adds.
            pretrain_views: Changes of the views for self-supervised pre-training, which take turns.
            local_view: Changes of local views; None for smaller crops with the other changes of the first of these.
        """
        self._channels, self._side = image_shape[0], image_shape[1]
        self._weak, self._strong, self._pretrain = weak_view, strong_view, pretrain_views
        self._local = make_local_view(pretrain_views[0], self._side) if local_view is None else local_view

    def prepare(self, raw: Tensor) -> Tensor:
        """Turn uint8 images into float32 pixels in [0, 1] of one shape, (B, C, H, W)."""
        return to_float(raw, self._channels, self._side)

    def weak(self, x: Tensor, seed: int | None, number: int = 0) -> Tensor:
        """Apply the weak view."""
        return weak(x, self._weak, seed, number)

    def strong(self, x: Tensor, seed: int) -> Tensor:
        """Apply the strong view."""
        return strong(x, self._weak, self._strong, seed)

    def pretrain(self, x: Tensor, seed: int, number: int) -> Tensor:
        """Apply the first, second, ... view for self-supervised pre-training."""
        view = self._pretrain[number % len(self._pretrain)]
        return make_pretrain_view(x, view, make_generator(seed, _PRETRAIN + number))

    def pretrain_local(self, x: Tensor, seed: int, number: int) -> Tensor:
        """Apply the local view for self-supervised pre-training."""
        return make_pretrain_view(x, self._local, make_generator(seed, _PRETRAIN + number))

    @property
    def has_strong(self) -> bool:
        """Whether the settings of the strong view change anything."""
        return bool(self._strong)

    def show(self, x: Tensor) -> Tensor:
        """Return the images."""
        return x.clamp(0, 1)


def make_generator(seed: int, number: int) -> torch.Generator:
    """Make the random generator of one view of a batch, on the CPU.

    Args:
        seed: Seed of the batch.
        number: Number of the view; each has its own random stream.
    """
    return torch.Generator().manual_seed((seed + number * _APART) % 2**32)
