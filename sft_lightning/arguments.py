"""The parser of the command line: its errors are one sentence, not a page of usage."""

import importlib
import inspect
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

import sft_lightning
from sft_lightning.errors import InputError, near
from sft_lightning.losses import feature_losses, regularizers, strategies
from sft_lightning.networks import adapters

_KEY = re.compile(r"Parser key \"([\w.]+)\"")
# The class that was asked stands behind the unknown option (callables) or before it (modules).
_OWNER_AFTER = re.compile(r"is not accepted\. Got value: Namespace\(class_path='([\w.]+)'")
_OWNER = re.compile(r"class_path '([\w.]+)'")
_UNKNOWN = re.compile(r"(?:[Oo]ption|[Kk]ey) '([\w.\-]+)'(?: is not (?:accepted|expected)|$)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_EXPECTED = re.compile(r"Expected a (?!<class 'NoneType'>)(.*)")
_CHOICE = re.compile(r"typing\.Literal\[(.+?)\]")
_VALUE = re.compile(r"(?:Got|Given) value: (.*)")
# Lines of jsonargparse that speak of Python types instead of the mistake.
_NOISE = re.compile(r"^(Does not validate|Subtypes:|Errors:|Given value|- Expected a <class 'NoneType'>)")


class Parser(LightningArgumentParser):
    """Raises what the user did wrong as an `InputError`."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Shortens a message of jsonargparse.

        Args:
            message: Several lines, as a rule.
            ex: What caused it.

        Raises:
            InputError: Always, but for parsers inside this one.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        named = [word for word in self.prog.split()[1:] if word.isalpha()]  # not "[options]"
        raise InputError(sentence(message, *named[:1])) from ex


def sentence(message: str, command: str = "fit") -> str:
    """The mistake in one sentence.

    Args:
        message: Of jsonargparse.
        command: Whose help explains more.
    """
    missing = _NO_CLASS.search(message)
    if missing:
        name = missing.group(1)
        families = {
            "strategy": strategies.__all__,
            "feature_loss": feature_losses.__all__,
            "regularizer": regularizers.__all__,
            "adapter": adapters.__all__,
        }
        ours = [*sft_lightning.__all__, *(cls for family in families.values() for cls in family)]
        if name in ours:  # but not here
            key = _KEY.findall(message)[-1].rpartition(".")[2]
            fitting = families.get(key, [])
            those = f"{', '.join(fitting[:-1])} or {fitting[-1]}" if fitting else "a class of that kind"
            return f"class {name!r} is no {key}: give {those}"
        hint = near(name, ours)
        return f"class {name!r} is unknown{hint}: give its name, or package.module.Class"
    unknown = _UNKNOWN.search(message)
    if unknown:
        owners = _OWNER_AFTER.findall(message) or _OWNER.findall(message)
        group, _, name = unknown.group(1).rpartition(".")
        owner = owners[-1] if owners else "lightning.pytorch.Trainer" if group == "trainer" else ""
        if (owner.rpartition(".")[2], name) == ("LightningModule", "class_path"):
            return (
                "model has no class_path: set it, or give the config that does as the first of two "
                "(--config configs/semi_supervised/shared.yaml --config configs/semi_supervised/fixmatch.yaml)"
            )
        if owner:
            options = _options(owner)
            listed = f"; its options: {', '.join(options)}" if owners else ""
            return f"{owner.rpartition('.')[2]} has no option {name!r}{near(name, options)}{listed}"
        return f"there is no option {unknown.group(1)!r}; 'sft-lightning {command} --help' lists all"
    if '"<unicode string>"' in message:
        return f"config: a YAML file cannot be read{_line(message)}: check its indentation and quotes"
    if "Unexpected config" in message:
        return "config: a YAML file holds no settings: give one such as configs/quickstart/fine_tune.yaml"
    if "required: " in message and message.rstrip().endswith((".model", ".data")):
        return "no model or no data: add --config with a YAML file such as configs/quickstart/fine_tune.yaml"
    lines = [line.strip() for line in message.strip().splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    keys = [key for line in lines for key in _KEY.findall(line)]
    expected, value = _EXPECTED.findall(message), _VALUE.search(message)
    if len(expected) == 1 and value and (choice := _CHOICE.match(expected[0])):
        choices = [word.strip(" '") for word in choice.group(1).split(",")]
        hint = near(value.group(1), choices)
        return f"{'.'.join(keys)} is {value.group(1)!r}{hint}: give {', '.join(choices[:-1])} or {choices[-1]}"
    last = re.sub(r"^- ", "", lines[-1]) if lines else message
    last = _KEY.sub("", last).strip(": ")
    last = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", last)
    where = f"{'.'.join(dict.fromkeys(keys))}: " if keys else ""
    return f"{where}{last} ('sft-lightning {command} --help' explains the options)"


def _line(message: str) -> str:
    found = re.findall(r"line (\d+), column \d+", message)
    return f" (line {found[-1]})" if found else ""


def _options(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    found: list[str] = []
    for base in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        parameters = inspect.signature(base).parameters.values()
        found += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if all(p.kind != p.VAR_KEYWORD for p in parameters):  # else the rest is the next class's
            break
    return list(dict.fromkeys(found))
