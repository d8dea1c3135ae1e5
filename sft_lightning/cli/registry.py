"""Names that a config or an option may hold: classes by the setting that takes them, and the settings of each class."""

import importlib
import inspect
from functools import cache
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from torch import optim

import sft_lightning
from sft_lightning import anomaly, classifiers
from sft_lightning.cli.parser import list_actions
from sft_lightning.losses import features as feature_losses, pretraining, regularizers, unlabeled as strategies
from sft_lightning.networks import adapters

# Classes of ours by the setting that names them.
OURS = {
    "model": [
        name
        for name in sft_lightning.__all__
        if name.endswith(("Module", "Classifier", "Detector")) and "Data" not in name
    ],
    "data": [
        "ImageDataModule",
        "TextDataModule",
        "AudioDataModule",
        "SegmentationDataModule",
        "DetectionDataModule",
        "AnomalyDataModule",
    ],
    "objective": pretraining.__all__,
    "strategy": strategies.__all__,
    "feature_loss": feature_losses.__all__,
    "regularizer": regularizers.__all__,
    "adapter": adapters.__all__,
    "classifier": classifiers.__all__,
    "method": [name for name in anomaly.__all__ if name != "AnomalyMethod"],
    "lr_scheduler": ["WarmupCosine"],
}
# Modules with further classes.
_OTHERS = {
    "optimizer": "torch.optim",
    "lr_scheduler": "torch.optim.lr_scheduler",
    "callbacks": "lightning.pytorch.callbacks",
    "logger": "lightning.pytorch.loggers",
}
LINKED = ("num_classes", "class_names", "target", "input_spec", "image_shape")  # taken from the data


def list_class_paths(setting: str) -> list[str]:
    """List the classes that a setting takes, as a config names them.

    Args:
        setting: Last component of its name, such as `optimizer`. For an unknown setting, all our classes are listed.
    """
    if setting not in OURS and setting not in _OTHERS:
        return sorted({name for names in OURS.values() for name in names})
    module = _OTHERS.get(setting)
    others = importlib.import_module(module).__all__ if module else []
    return [*OURS.get(setting, []), *(f"{module}.{name}" for name in others if name != "Optimizer")]


def list_parameters(class_path: str) -> list[str]:
    """List the names of a class's settings; none if the class does not exist.

    Args:
        class_path: Name of the class with its module.
    """
    module, _, name = class_path.rpartition(".")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    found: list[str] = []
    for base in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        if inspect.isclass(base) and not {"__init__", "__new__"} & {*vars(base)}:  # the next one's signature is meant
            continue
        own = inspect.signature(base).parameters.values()
        found += [p.name for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if all(p.kind != p.VAR_KEYWORD for p in own):  # else the rest is the next class's
            break
    return list(dict.fromkeys(found))


def accepts_null(class_path: str, name: str) -> bool:
    """Return whether a setting of a class may be null; True if its type is not known.

    Args:
        class_path: Name of the class with its module.
        name: Name of the setting.
    """
    module, _, attribute = class_path.rpartition(".")
    base: Any
    for base in inspect.getmro(getattr(importlib.import_module(module), attribute)):
        if name in inspect.signature(base).parameters:
            try:
                hint = get_type_hints(base.__init__).get(name, Any)
            except NameError:  # a name that is imported for type checkers alone
                return True
            return hint in (Any, type(None)) or type(None) in get_args(hint)
    return True


def find_models_with(name: str) -> list[str]:
    """Find our models that have a setting.

    Args:
        name: Name of the setting.
    """
    return [cls for cls in OURS["model"] if name in list_parameters(f"sft_lightning.{cls}")]


@cache
def describe_settings() -> dict[str, str]:
    """Return the help of each setting that `fit` takes below `--model` and `--data`, by its full name."""
    found: dict[str, str] = {}
    for prefix, kinds in _group_classes().items():
        for cls in kinds:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(cls, prefix, fail_untyped=False, skip={"params", *LINKED})
            for action in list_actions(parser):
                name = action.dest
                if name.startswith(f"{prefix}.") and not name.endswith(".help"):
                    found.setdefault(name, action.help or "")
    return found


def _group_classes() -> dict[str, list[Any]]:
    ours = {name: _load_ours(name) for name in OURS}
    model, data = "model.init_args", "data.init_args"
    found = {model: ours.pop("model"), data: ours.pop("data")}
    others = [sft_lightning.TextView, sft_lightning.AudioView]
    found |= {f"{data}.weak_view": [sft_lightning.WeakView, *others]}
    found |= {
        f"{data}.strong_view": [sft_lightning.StrongView, sft_lightning.ColorView, sft_lightning.PatchView, *others]
    }
    pretrain_views = "pretrain_view", "pretrain_view_2", "pretrain_view_local"
    found |= {f"{data}.{name}": [sft_lightning.PretrainView] for name in pretrain_views}
    found |= {f"{model}.{name}.init_args": kinds for name, kinds in ours.items()}
    return found | {f"{model}.optimizer.init_args": [optim.SGD, optim.Adam, optim.AdamW]}


def _load_ours(name: str) -> list[Any]:
    homes = (sft_lightning, pretraining, strategies, feature_losses, regularizers, adapters, classifiers, anomaly)
    return [next(getattr(home, cls) for home in homes if cls in home.__all__) for cls in OURS[name]]
