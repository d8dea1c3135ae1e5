"""JSON files, read with a check: a damaged one is a sentence that names the file and the remedy."""

import json
from pathlib import Path
from typing import Any

from sft_lightning.utils.errors import InputError


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: Path of the file.
        remedy: Advice for the user about a damaged file, such as "remove it".

    Raises:
        InputError: The file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{str(path)!r} cannot be read ({error}): {remedy}") from error


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: Path of the file.
        remedy: Advice for the user about a damaged file.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} does not hold a JSON object: {remedy}")
    return content


def read_json_header(path: Path, remedy: str) -> dict[str, Any]:
    """Read the JSON object in the comment that a CSV file begins with.

    Args:
        path: Path of the file, whose first line is `# {...}`.
        remedy: Advice for the user about a damaged file.

    Raises:
        InputError: The file cannot be read, or has no such line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline().removeprefix("# "))
        if not isinstance(header, dict):
            raise ValueError("its first line is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): {remedy}") from error
    return header
