"""The data module for a source, by what the source holds."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

# Data modules by modality. They are named by text, as in `networks/build.py`: this file knows no modality.
DATA_MODULES = {
    "audio": "sft_lightning.data.audio.datamodule:AudioDataModule",
    "text": "sft_lightning.data.text.datamodule:TextDataModule",
    "image": "sft_lightning.data.vision.datamodule:ImageDataModule",
}
# Modules with a function `holds`, which are asked in this order; a source that none knows is of the default.
_DETECTORS = {"audio": "sft_lightning.data.audio.detection", "text": "sft_lightning.data.text.detection"}
_DEFAULT = "image"


def find_modality(source: str) -> str:
    """Return the modality of what a source holds.

    Args:
        source: Source as the user named it.
    """
    return next((name for name, module in _DETECTORS.items() if import_module(module).holds(source)), _DEFAULT)


def get_data_class(modality: str) -> type[FewLabelDataModule]:
    """Return the data module of a modality.

    Args:
        modality: Key of `DATA_MODULES`.
    """
    module, _, name = DATA_MODULES[modality].partition(":")
    found: type[FewLabelDataModule] = getattr(import_module(module), name)
    return found


def open_data(
    source: str, given: Mapping[str, Any], where_taken: Mapping[str, Any] | None = None
) -> FewLabelDataModule:
    """Return the data module for a source, before its setup.

    Args:
        source: Source as the user named it.
        given: Settings of the user by name; None for those that he left out.
        where_taken: Further settings, for the data modules that have them.

    Raises:
        InputError: The data module for the source has no such setting, or refuses it.
    """
    modality = find_modality(source)
    check_settings(source, modality, given)
    cls = get_data_class(modality)
    others = {name: value for name, value in (where_taken or {}).items() if name in _list_settings(modality)}
    settings = {name: value for name, value in given.items() if value is not None}
    return cls(source, **{**others, **settings})


def check_settings(source: str, modality: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that data of a modality does not have.

    Args:
        source: Source as the user named it.
        modality: Modality of what it holds.
        given: Settings of the user by name; None for those that he left out.

    Raises:
        InputError: The data module of this modality has no such setting.
    """
    known, plural = _list_settings(modality), InputSpec(modality, ()).plural
    for name, value in given.items():
        if value is not None and name not in known:
            raise InputError(f"{name} is {value!r}, and source {source!r} holds {plural}: leave it out")


def _list_settings(modality: str) -> set[str]:
    return {*inspect.signature(get_data_class(modality).__init__).parameters}
