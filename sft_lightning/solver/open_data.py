"""The data module of a source of `solve`, by what the source holds, and what trainings on it set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.open_data import check_settings, find_modality


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
    """

    name: str
    make: Callable[..., FewLabelDataModule]
    unit: str
    plain: str
    small_view: tuple[str, ...] = ()
    large_view: tuple[str, ...] = ("--model.layer_decay=0.75",)
    pretrained: str = ""
    plain_encoding: str = ""


VISION = Modality(
    "image", ImageDataModule, "px", "pixels", ("--data.weak_view.crop_padding=2",),
    ("--data.weak_view.crop_scale=[0.3,1.0]", "--model.layer_decay=0.75"), "resnet8:flatten",
)  # fmt: skip
TEXT = Modality("text", TextDataModule, "tokens", "tfidf", plain_encoding="words:1048576")


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
    return {one.name: one for one in (VISION, TEXT)}[name]
