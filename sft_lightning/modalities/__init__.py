"""The modalities: what the commands ask of each kind of examples, one file each.

Every module of this package, `base` aside, holds one `Modality` under the name `MODALITY`; a further one needs a
further file and nothing else. What a modality names is imported when it is used, so that this package may stand below
all others, and a command loads nothing of a modality that it does not meet.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from sft_lightning.modalities.base import Modality, SolveChoices, load

__all__ = ["Modality", "SolveChoices", "get_modality", "list_modalities", "load"]


@cache
def list_modalities() -> tuple[Modality, ...]:
    """Return the modalities of this package in the order in which a source is looked at."""
    names = [module.name for module in iter_modules(__path__) if module.name != "base"]
    found: list[Modality] = [import_module(f"{__name__}.{name}").MODALITY for name in sorted(names)]
    return tuple(sorted(found, key=lambda one: one.detector == ""))  # the default is the last


def get_modality(name: str) -> Modality:
    """Return a modality by its name; one of a user's own has what serves any examples.

    Args:
        name: Name, as `InputSpec.modality` has it.
    """
    return next((one for one in list_modalities() if one.name == name), Modality(name))
