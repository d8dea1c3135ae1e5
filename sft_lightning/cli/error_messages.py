"""Condense jsonargparse errors into one-sentence messages.

Each function below knows one kind of mistake and returns None for the others; the first that knows the message answers.
The registry of classes, which needs torch, is imported where it is used.
"""

import ast
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sft_lightning.cli.commands import COMMANDS, explain_missing, explain_unknown_option
from sft_lightning.cli.shipped_configs import suggest_shipped
from sft_lightning.utils.errors import did_you_mean, find_nearest

_KEY = re.compile(r"(?:Parser key|Key) \"([\w.]+)\"")
# jsonargparse names the class behind the unknown option (callables) or before it (modules).
_OWNER_AFTER = re.compile(r"is not accepted\. Got value: Namespace\(class_path='([\w.]+)'")
_OWNER = re.compile(r"class_path '([\w.]+)'")
_UNKNOWN = re.compile(r"(?:[Oo]ption|[Kk]ey) '([\w.\-]+)'(?: is not (?:accepted|expected)|$)")
_GROUP = re.compile(r"Group '(\w+)' does not accept")  # the option follows without the name of the group
_WORD = re.compile(r"unrecognized arguments: -+([\w.\-+]+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)|Unexpected import path format: (\S+)")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_FILE = re.compile(r"File does not exist: '(.+?)'")
_REQUIRED = re.compile(r"arguments are required: (.+)|[Kk]ey \"?'?([\w.]+)\"?'? is required")
# jsonargparse makes the text "None" of a null inside a group, and refuses it although the setting may be null.
_NULL_TEXT = re.compile(
    r"Subtypes: \[[^\n]*'NoneType'[^\n]*\]\n(?:(?!Subtypes: ).)*?"
    r"Given value type: <class 'str'>\n\s*Given value: None\n",
    re.S,
)
_EXPECTED = re.compile(r"Expected a (?!<class 'NoneType'>|path but )(.*)")
_CHOICE = re.compile(r"typing\.Literal\[(.+?)\]")
_VALUE = re.compile(r"(?:Got|Given) value: (.*)")
NO_MODEL_OR_DATA = "no model or no data: add --config with a YAML file such as configs/quickstart/fine_tune.yaml"
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text, in quotes where it looks like a number, yes, no or null",
    "list": "a list such as [1, 2]",
    "tuple": "a list such as [1, 2]",
    "dict": "a mapping such as {name: value}",
}
# A setting that takes a number or a tensor: a value that is not a number was not meant as the name of a class.
_OR_TENSOR = re.compile(r"(<class 'float'>)\s+- Expected a dot import path string: \S+")
# Lines about Python types instead of the mistake.
_NOISE = re.compile(r"^(Does not validate|Subtypes:|Errors:|Given value|- Expected a <class 'NoneType'>)")


def condense_error(message: str, command: str = "fit", flags: Sequence[str] = ()) -> str:
    """Return the mistake in one sentence.

    Args:
        message: Message of jsonargparse.
        command: Name of the command, whose help the sentence may refer to.
        flags: Options of the command, such as `--trainer.max_epochs`.
    """
    known = [flag.lstrip("-") for flag in flags if not flag.endswith((".help", "+"))]
    message = _OR_TENSOR.sub(r"\1", message)
    sentence = (
        _explain_missing_file(message)
        or _explain_unknown_class(message)
        or _explain_unknown_class_key(message)
        or _explain_unknown_argument(message, command, known)
        or _explain_unreadable_config(message)
        or _explain_required(message, command)
        or _explain_wrong_value(message)
    )
    return sentence or _shorten(message, command)


def _find_key(message: str) -> str:
    """Return the name of the setting that a message is about, or an empty string."""
    keys = _KEY.findall(message)
    return ".".join(part for i, part in enumerate(keys) if part not in keys[:i])


def _explain_missing_file(message: str) -> str | None:
    found = _NO_FILE.search(message)
    path = (
        found[1]
        if found
        else next((word for word in _find_class_names(message) if word.endswith((".yaml", ".yml"))), None)
    )
    if path is None:
        return None
    return explain_missing_setting(path, _find_key(message))


def explain_missing_setting(path: str, key: str = "") -> str:
    """Explain that a file does not exist.

    Args:
        path: Path of the file.
        key: Name of the setting that names it.
    """
    shown = Path(os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path)
    missing = next(p for p in (shown, *shown.parents) if p.parent.exists())  # the first component that does not exist
    others = [str(p) for p in missing.parent.iterdir() if p.is_dir() or missing != shown or p.suffix == shown.suffix]
    hint = did_you_mean(str(missing), others) or suggest_shipped(str(shown))
    return f"{key} {str(shown)!r} does not exist{hint}: check the path".lstrip()


def _find_class_names(message: str) -> list[str]:
    return [a or b for a, b in _NO_CLASS.findall(message)]


def _explain_unknown_class(message: str) -> str | None:
    missing, absent = _find_class_names(message), _NO_ATTRIBUTE.search(message)
    if not missing and not absent:
        return None
    from sft_lightning.cli.registry import OURS, list_class_paths

    name = missing[0] if missing else f"{absent[1]}.{absent[2]}" if absent else ""
    key = _find_key(message).rpartition(".")[2]
    if name in {one for names in OURS.values() for one in names}:  # a class of ours, but for another setting
        choices = OURS.get(key, [])
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else "a class of that kind"
        return f"class {name!r} does not fit {key}: give {listed}"
    full = {known.rpartition(".")[2]: known for known in list_class_paths(key)}
    hint = [full[found] for found in find_nearest(name.rpartition(".")[2], list(full))]
    suggestion = f" (did you mean {' or '.join(map(repr, hint))}?)" if hint else ""
    return f"class {name!r} is unknown{suggestion}: give its name, or package.module.Class"


def _explain_unknown_class_key(message: str) -> str | None:
    """Explain a misspelled `class_path` or `init_args`."""
    value = _VALUE.search(message)
    if "Not a valid subclass" not in message and "LightningModule':" not in message:
        return None
    try:
        given = ast.literal_eval(value[1]) if value else None
    except (ValueError, SyntaxError):
        return None
    wrong = [name for name in given if name not in _CLASS_KEYS] if isinstance(given, dict) else []
    if not wrong:
        return None
    return (
        f"{_find_key(message)} has no entry {wrong[0]!r}{did_you_mean(wrong[0], _CLASS_KEYS[:2])}: give "
        "class_path and init_args"
    )


def _explain_unknown_argument(message: str, command: str, known: list[str]) -> str | None:
    word, unknown = _WORD.search(message), _UNKNOWN.search(message)
    owner = (_OWNER_AFTER.findall(message) or _OWNER.findall(message) or [""])[-1]
    if word:
        name = f"{_find_key(message)}.{word[1]}".lstrip(".")
        return explain_unknown_option(f"--{name}", _suggest_option(name, known), command)
    if not unknown:
        return None
    group = _GROUP.search(message)
    path = f"{group[1]}.{unknown[1]}" if group else unknown[1]
    head, _, rest = path.partition(".")
    if head == "trainer" and not owner:
        owner, head = "lightning.pytorch.Trainer", rest
    if owner.rpartition(".")[2] == "LightningModule":
        return (
            "model has no class_path: set it, or give the config that does as the first of two "
            "(--config configs/semi_supervised/shared.yaml --config configs/semi_supervised/fixmatch.yaml)"
        )
    if not owner:
        tops = list(dict.fromkeys(name.partition(".")[0] for name in known))
        return explain_unknown_option(repr(head), did_you_mean(head, tops), command)
    from sft_lightning.cli.registry import list_parameters

    return _explain_setting_of_class(owner, head if head not in list_parameters(owner) else path.rpartition(".")[2])


def _explain_setting_of_class(owner: str, name: str) -> str:
    from sft_lightning.cli.registry import OURS, find_models_with, list_parameters

    cls, options = owner.rpartition(".")[2], list_parameters(owner)
    if cls in OURS["model"] and (elsewhere := find_models_with(name)):
        return f"{cls} has no option {name!r}, which is one of {' and '.join(elsewhere)}"
    if hint := did_you_mean(name, options):
        return explain_unknown_setting(cls, name, hint)
    others = [option for other in OURS["model"] for option in list_parameters(f"sft_lightning.{other}")]
    found = find_nearest(name, others)[:1] if cls in OURS["model"] else []
    if found:
        return f"{cls} has no option {name!r} (did you mean {found[0]!r} of {' or '.join(find_models_with(found[0]))}?)"
    return f"{cls} has no option {name!r}; its options: {', '.join(options)}"


def explain_unknown_setting(cls: str, name: str, hint: str) -> str:
    """Explain that a class does not have a setting.

    Args:
        cls: Name of the class.
        name: Name of the setting.
        hint: Suggestion in parentheses, or an empty string.
    """
    return f"{cls} has no option {name!r}{hint}"


def _suggest_option(name: str, known: list[str]) -> str:
    """Suggest the nearest option: by its full name, or by its last component where a single word was given."""
    every = list(known)
    if "trainer.max_epochs" in known:
        from sft_lightning.cli.registry import describe_settings

        every += describe_settings()
    parts = slice(None) if "." in name else slice(-1, None)
    short = {option: ".".join(option.replace("init_args.", "").split(".")[parts]) for option in every}
    word = name.replace("init_args.", "")
    found = find_nearest(word, list(short.values()), cutoff=0.7)[:1] or [
        text for text in short.values() if text[: len(word)] == word
    ]
    hint = [f"--{option}" for option, text in short.items() if text in found]
    return f" (did you mean {' or '.join(hint[:3])}?)" if hint else ""


def _explain_unreadable_config(message: str) -> str | None:
    if '"<unicode string>"' in message:
        line = re.findall(r"line (\d+), column \d+", message)
        return explain_unreadable("", int(line[-1]) if line else None)
    if "Unexpected config" in message:
        return "config: a YAML file holds no settings: give one such as configs/quickstart/fine_tune.yaml"
    return None


def explain_unreadable(path: str, line: int | None) -> str:
    """Explain that a config is not valid YAML.

    Args:
        path: Path of the file; empty if it is not known.
        line: Number of the wrong line, from 1; None if it is not known.
    """
    name, place = f" {path!r}" if path else "", f" (line {line})" if line else ""
    return f"config{name}: a YAML file cannot be read{place}: check its indentation and quotes"


def explain_missing_part(*lacking: str) -> str:
    """Explain that a call names no model, or no data, or neither.

    Args:
        lacking: Those of `model` and `data` that are missing.
    """
    if len(lacking) != 1:
        return NO_MODEL_OR_DATA
    (part,) = lacking
    example = "FineTuneClassifier" if part == "model" else "ImageDataModule"
    return (
        f"no {part}: add --{part} with a class such as {example}, or --config with a YAML file of both, such as "
        "configs/quickstart/fine_tune.yaml"
    )


def _explain_required(message: str, command: str) -> str | None:
    if "required: " in message and message.rstrip().endswith((".model", ".data")):
        return explain_missing_part(message.rstrip().rpartition(".")[2])
    found = _REQUIRED.search(message)
    if found and _OWNER.search(message):
        return f"{_find_key(message)}.{found[1] or found[2]} is missing: set it"
    if found and {found[1], found[2]} & {"model", "data"}:
        return explain_missing_part(*({found[1], found[2]} & {"model", "data"}))
    if not found or command not in COMMANDS:
        return None
    words = {option: what for what, option in COMMANDS[command].words.items()}
    names = ", ".join(words.get(name.strip(), f"--{name.strip()}") for name in (found[1] or found[2]).split(","))
    return explain_missing(command, names)


def _explain_wrong_value(message: str) -> str | None:
    """Explain a value that is not among the choices, or is of another type."""
    expected, value = _EXPECTED.findall(message), _VALUE.search(message)
    if not expected or not value:
        return None
    given = value[1].partition(". Got value: ")[0].strip()
    group, _, name = _find_key(message).rpartition(".")
    if group and _NULL_TEXT.search(message):
        return f"{group}.{name} is null: write it as a mapping, --{group} '{{{name}: null}}', or in a YAML file"
    kinds = [re.sub(r"\. Got value.*", "", kind) for kind in expected]
    types = [re.sub(r"<class '(\w+)'>", r"\1", kind) for kind in kinds]
    choices = [word.strip(" '") for kind in kinds if (c := _CHOICE.match(kind)) for word in c[1].split(",")]
    if choices:
        choices = list(dict.fromkeys([*choices, *(("true", "false") if "bool" in types else ())]))
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
        return f"{_find_key(message)} is {given!r}{did_you_mean(given, choices)}: give {listed}"
    if all(kind in _TYPES for kind in types):
        expectation = " or ".join(_TYPES[kind] for kind in dict.fromkeys(types))
        if re.fullmatch(r"[\w./-]+", given):  # one item was meant
            expectation = expectation.replace("[1, 2]", f"[{given}]")
        return f"{_find_key(message)} is {given!r}: give {expectation}"
    return None


def _shorten(message: str, command: str) -> str:
    lines = [line.strip() for line in message.strip().splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    last = re.sub(r"^- ", "", lines[-1]) if lines else message
    last = _KEY.sub("", last).strip(": ")
    last = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", last)
    where = f"{_find_key(message)}: " if _KEY.search(message) else ""
    return f"{where}{last} ('sft-lightning {command} --help' explains the options)"
