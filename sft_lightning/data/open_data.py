"""The data module for a source, by what the source holds."""

import inspect
from collections.abc import Mapping
from typing import Any

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.modalities import get_modality, list_modalities, load
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec


def find_modality(source: str) -> str:
    """Return the modality of what a source holds.

    Args:
        source: Source as the user named it.
    """
    return next(one.name for one in list_modalities() if not one.detector or load(one.detector)(source))


def get_data_class(modality: str) -> type[FewLabelDataModule]:
    """Return the data module of a modality.

    Args:
        modality: Name of a modality of this package.
    """
    found: type[FewLabelDataModule] = load(get_modality(modality).data_module)
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
