"""The configs that come with the package: found by name from any folder, listed, and copied. Nothing heavy is imported.

A path that exists always wins. Otherwise, `quickstart/fine_tune.yaml` and `configs/quickstart/fine_tune.yaml` name the
shipped config, on the command line as well as inside of another config.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError, did_you_mean, find_nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = (".yaml", ".yml")
_CUTOFF = 0.8  # similarity of a path to the shipped config that may be meant
_NESTED = re.compile(r"(?:\.\./)+([\w/]+\.yaml)")  # how one shipped config names another


def configs_folder() -> Path:
    """Return the folder of the shipped configs: inside the package in a wheel, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def list_shipped() -> list[str]:
    """Return the names of the shipped configs, such as `quickstart/fine_tune.yaml`."""
    folder = configs_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.yaml"))


def find_shipped(name: str) -> Path | None:
    """Find a shipped config by its name.

    Args:
        name: Name such as `quickstart/fine_tune.yaml`, or `configs/quickstart/fine_tune.yaml`.

    Returns:
        Its path, or None where no shipped config has this name.
    """
    if not name.endswith(_SUFFIXES):
        return None
    name = name.removeprefix("./").removeprefix("configs/")
    return configs_folder() / name if name in list_shipped() else None


def suggest_shipped(path: str) -> str:
    """Return a hint with the shipped configs that a misspelled path may mean, or an empty string.

    Args:
        path: Path of a file that does not exist.
    """
    nearest = find_nearest(path.removeprefix("configs/"), list_shipped(), _CUTOFF)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""


def locate_configs(value: Any, folder: Path | None = None) -> Any:
    """Replace names of shipped configs with their paths.

    Args:
        value: Content of a config, or one value of it.
        folder: Folder that relative paths begin at; the current one when None. Paths that exist there are kept.

    Returns:
        The value with each name of a shipped config replaced.
    """
    if isinstance(value, dict):
        return {key: locate_configs(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [locate_configs(entry, folder) for entry in value]
    shipped = find_shipped(value) if isinstance(value, str) else None
    return value if shipped is None or Path(folder or "", value).exists() else str(shipped)


def configs(action: Literal["list", "copy"] = "list", name: str | None = None, to: str | None = None) -> str | Path:
    """List the shipped configs, or copy one for editing.

    Args:
        action: `list`, or `copy` with a name.
        name: Config to copy, such as `quickstart/fine_tune.yaml`.
        to: Path of the copy; the name of the file in the current folder when left out.

    Returns:
        The list, or the path of the copy.

    Raises:
        InputError: There is no such config, or the path of the copy is taken or cannot be written.
    """
    if action == "list":
        if name is not None or to is not None:
            raise InputError(f"list takes no {'name' if to is None else 'to'}: give 'sft-lightning configs copy NAME'")
        return _format_list()
    if name is None:
        raise InputError("copy needs NAME: give 'sft-lightning configs copy quickstart/fine_tune.yaml'")
    source = find_shipped(name) or find_shipped(f"{name}.yaml")
    if source is None:
        raise InputError(f"{name!r} is not a shipped config{_suggest(name)}: 'sft-lightning configs' lists them")
    target = Path(source.name if to is None else to)
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise InputError(f"{str(target)!r} exists and is not overwritten: remove it, or give another path with --to")
    # The configs beside it stay where they are, so the copy names them as any config outside of their folder does.
    text = _NESTED.sub(lambda found: found[1] if find_shipped(found[1]) else found[0], source.read_text("utf-8"))
    write_text(target, text)
    return target


def _suggest(name: str) -> str:
    """Return a hint with the shipped configs of nearly this name, with or without their folder."""
    names = list_shipped()
    if "/" in name:
        return did_you_mean(name, names)
    nearest = find_nearest(Path(name).stem, [Path(shipped).stem for shipped in names])
    meant = [repr(shipped) for shipped in names if Path(shipped).stem in nearest]
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def _format_list() -> str:
    names = list_shipped()
    width = max(map(len, names)) + 2
    lines: list[str] = []
    for folder, group in groupby(names, lambda name: name.partition("/")[0]):
        lines += [f"{folder}:", *(f"  {name:<{width}}{_read_title(name)}" for name in group), ""]
    use = "'sft-lightning fit --config NAME' works in any folder, 'sft-lightning configs copy NAME' writes one to edit."
    return "\n".join([*lines, use])


def _read_title(name: str) -> str:
    """Return the first line of a config's header."""
    return (configs_folder() / name).read_text("utf-8").partition("\n")[0].removeprefix("# ")
