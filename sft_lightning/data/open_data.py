"""The data module for a source, by what the source holds."""

import inspect
from collections.abc import Mapping
from typing import Any

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.modalities import Modality, get_modality, list_modalities, load
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec


def find_modality(source: str) -> str:
    """Return the modality of what a source holds.

    Args:
        source: Source as the user named it.
    """
    masked = (one.name for one in list_modalities() if _holds_masks(one, source))  # whose outlines may be texts
    found = (one.name for one in list_modalities() if not one.detector or load(one.detector)(source))
    return next(masked, None) or next(found)


def _holds_masks(modality: Modality, source: str) -> bool:
    return bool(modality.mask_detector and load(modality.mask_detector)(source))


def get_data_class(modality: str) -> type[FewLabelDataModule]:
    """Return the data module of a modality.

    Args:
        modality: Name of a modality of this package.
    """
    found: type[FewLabelDataModule] = load(get_modality(modality).data_module)
    return found


def find_data_class(source: str) -> type[FewLabelDataModule]:
    """Return the data module for a source, by what it holds.

    Args:
        source: Source as the user named it.
    """
    modality = get_modality(find_modality(source))
    if modality.box_detector and load(modality.box_detector)(source):
        boxed: type[FewLabelDataModule] = load(modality.box_data_module)
        return boxed
    if _holds_masks(modality, source):
        found: type[FewLabelDataModule] = load(modality.mask_data_module)
        return found
    return get_data_class(modality.name)


def open_data(
    source: str, given: Mapping[str, Any], where_taken: Mapping[str, Any] | None = None
) -> FewLabelDataModule:
    """Return the data module of classes for a source, before its setup.

    Args:
        source: Source as the user named it.
        given: Settings of the user by name; None for those that he left out.
        where_taken: Further settings, for the data modules that have them.

    Raises:
        InputError: The data module for the source has no such setting, or refuses it, or the examples have masks or
            boxes.
    """
    cls = find_data_class(source)
    if cls.has_boxes:
        raise InputError(
            f"source {source!r} holds {InputSpec(find_modality(source), ()).plural}{cls.in_addition}, which this "
            f"command does not take: `sft-lightning solve {source}` learns them and says which to annotate next, and "
            "FineTuneDetector with fit, test, predict, report and study (docs/detection.md)"
        )
    if cls.in_addition and given.get("class_names") is None:
        kind = InputSpec(find_modality(source), ()).plural + cls.in_addition
        raise InputError(
            f"source {source!r} holds {kind}, and this command takes one class for each example: `sft-lightning solve "
            f"{source}` says which masks to draw next"
        )
    cls = get_data_class(find_modality(source))
    check_settings(source, cls, given)
    others = {name: value for name, value in (where_taken or {}).items() if name in list_settings(cls)}
    settings = {name: value for name, value in given.items() if value is not None}
    return cls(source, **{**others, **settings})


def check_settings(source: str, cls: type[FewLabelDataModule], given: Mapping[str, Any]) -> None:
    """Refuse settings that a data module does not have.

    Args:
        source: Source as the user named it.
        cls: Data module for the source.
        given: Settings of the user by name; None for those that he left out.

    Raises:
        InputError: The data module has no such setting.
    """
    known, plural = list_settings(cls), InputSpec(find_modality(source), ()).plural
    for name, value in given.items():
        if value is not None and name not in known:
            raise InputError(
                f"{name} is {value!r}, and source {source!r} holds {plural}{cls.in_addition}: leave it out"
            )


def list_settings(cls: type[FewLabelDataModule]) -> set[str]:
    """Return the names of the settings of a data module.

    Args:
        cls: Data module.
    """
    return {*inspect.signature(cls.__init__).parameters}
