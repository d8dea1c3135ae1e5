"""The data module of a source of `solve`, by what the source holds, and what trainings on it set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sft_lightning import AudioDataModule, ImageDataModule, TextDataModule
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.open_data import check_settings, find_modality

_PRETRAIN_VIEW = ("crop_scale=[0.3,1.0]", "flip=false", "brightness=0.4", "contrast=0.4", "blur=0")


@dataclass(frozen=True)
class Modality:
    """What `solve` does differently for each kind of examples.

    Attributes:
        name: Kind of the inputs.
        make: Data module from the name of the source and settings.
        unit: Unit of the size of an example.
        plain: Backbone without weights, whose features are the inputs themselves, or weights of what they consist of.
        plain_encoding: Encoding of the inputs of that backbone where it is another one than that of networks.
        small_view: Options of trainings of networks of this package.
        large_view: Options of trainings of published networks.
        pretrained: Backbone that is pre-trained from scratch; empty where none is.
        pretrain_view: Options of that pre-training.
        skipping: Setting that leaves out unreadable files; empty where examples are not files.
        candidate: Published network that the user may name; empty where some are found or fetched.
    """

    name: str
    make: Callable[..., FewLabelDataModule]
    unit: str
    plain: str
    small_view: tuple[str, ...] = ()
    large_view: tuple[str, ...] = ("--model.layer_decay=0.75",)
    pretrained: str = ""
    plain_encoding: str = ""
    pretrain_view: tuple[str, ...] = ()
    skipping: str = ""
    candidate: str = ""


VISION = Modality(
    "image", ImageDataModule, "px", "pixels", ("--data.weak_view.crop_padding=2",),
    ("--data.weak_view.crop_scale=[0.3,1.0]", "--model.layer_decay=0.75"), "resnet8:flatten",
    pretrain_view=tuple(f"--data.pretrain_view.{change}" for change in _PRETRAIN_VIEW), skipping="on_bad_image",
)  # fmt: skip
TEXT = Modality(
    "text", TextDataModule, "tokens", "tfidf", plain_encoding="words:1048576", candidate="a sentence encoder"
)
AUDIO = Modality(
    "audio", AudioDataModule, "frames", "log_mel", pretrained="resnet8", skipping="on_bad_recording",
    candidate="a wav2vec 2.0",
)  # fmt: skip


def choose_modality(source: str, given: dict[str, Any]) -> Modality:
    """Return what `solve` does with the kind of examples that a source holds.

    Args:
        source: Source as the user named it.
        given: Settings of the user by name, None where he gave none.

    Raises:
        InputError: A setting of another kind of examples is given.
    """
    name = find_modality(source)
    check_settings(source, name, given)
    return {one.name: one for one in (VISION, TEXT, AUDIO)}[name]
