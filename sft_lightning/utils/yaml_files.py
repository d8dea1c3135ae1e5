"""Strict reading of YAML files: content that a parser would silently misread raises a one-sentence error."""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from sft_lightning.utils.errors import InputError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast
_STANDARD = "tag:yaml.org,2002:"
_MERGE = _STANDARD + "merge"  # tag of the key <<, which a loader resolves before it checks tags
_MOST = 10_000  # values that aliases may stand for


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Args:
        path: Path of the file.

    Raises:
        InputError: The file cannot be read, repeats a key, has a tag, or has aliases that expand to too many values.
    """
    name, text = f"config {str(path)!r}: ", ""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check(node, name)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except OSError as error:
        raise InputError(f"{name}it cannot be read ({error.strerror}): fix its permissions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}it is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name}{_explain(error, text)}") from error


def check_text(text: str) -> None:
    """Refuse repeated keys, tags and aliases that expand too far in a config; other faults are left to its parser.

    Args:
        text: YAML; of a single line, which may be a value that is not YAML at all, only aliases are checked.

    Raises:
        InputError: The text has one of them.
    """
    if "\n" not in text and "*" not in text:
        return
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        return
    if "\n" in text:
        _check(node, "config: ")
    else:
        _check_aliases(node, "config: ")


def _explain(error: Exception, text: str) -> str:
    """Explain what is wrong with a YAML file and where, with the remedy."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    place, line = "", ""
    if mark is not None:
        place, line = f"line {mark.line + 1}", "".join(text.split("\n")[mark.line : mark.line + 1])
    if "another document" in problem:
        return f"{place} begins a second YAML document (---): put it into its own file"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{place} is indented with a tab: indent with spaces"
    if "undefined alias" in problem:
        return f"{place} has an alias (*NAME) without its anchor (&NAME): write the value out, or put it in quotes"
    if "nesting depth" in problem:
        return f"{place} is nested too deeply: write a flatter file"
    if "control characters" in problem:
        return "it has characters that are not text: save it as UTF-8"
    return f"a YAML file cannot be read{f' ({place})' if place else ''}: check its indentation and quotes"


def _check(node: Any, name: str) -> None:
    """Refuse content that a loader would misread, before anything is built from it."""
    _check_aliases(node, name)
    waiting, seen = [node] if node is not None else [], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        line = one.start_mark.line + 1
        if one.tag not in _Loader.yaml_constructors and one.tag != _MERGE:
            tag = one.tag.replace(_STANDARD, "!!")
            raise InputError(f"{name}line {line} has the tag {tag!r}, which is not allowed: write plain values")
        if isinstance(one, yaml.MappingNode):
            first: dict[tuple[str, str], int] = {}
            for key in [key for key, _ in one.value if isinstance(key, yaml.ScalarNode)]:
                known, here = (key.tag, key.value), key.start_mark.line + 1
                if known in first:
                    raise InputError(
                        f"{name}line {here} repeats {key.value!r} of line {first[known]}: keep one of the two"
                    )
                first[known] = here
        waiting.extend(_children(one))


def _check_aliases(node: Any, name: str) -> None:
    """Refuse aliases that contain themselves, or that expand to too many values."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(node, False)] if node is not None else []
    while waiting:
        one, is_done = waiting.pop()
        if is_done:
            sizes[id(one)] = 1 + sum(sizes[id(child)] for child in _children(one))
            open_.discard(id(one))
        elif id(one) in open_:
            raise InputError(
                f"{name}an alias is inside of its own value (line {one.start_mark.line + 1}): write it out"
            )
        elif id(one) not in sizes:
            open_.add(id(one))
            waiting.append((one, True))
            waiting.extend((child, False) for child in _children(one))
    if node is not None and sizes[id(node)] - len(sizes) > _MOST:
        raise InputError(
            f"{name}its aliases (*NAME) stand for more than {_MOST:,} values: write out what is needed of them"
        )


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
