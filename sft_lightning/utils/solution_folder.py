"""The folder of a solution of `solve`, which stands for its model where a run is named. Nothing heavy is imported."""

from pathlib import Path

from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json_object

SUMMARY, PLAN, MODEL = "summary.json", "plan.json", "model"


def resolve_solution(path: Path) -> Path:
    """Return the run of the model if a path is the folder of a solution, and any other path as it is.

    The run is looked for in the folder itself, so that a solution may be moved.

    Args:
        path: Path that the user gave for a run.

    Raises:
        InputError: The solution has no model yet.
    """
    if not (path / PLAN).is_file():
        return path
    summary = path / SUMMARY
    named = read_json_object(summary, "call solve again").get("run") if summary.is_file() else None
    run = path / MODEL / Path(str(named)).name
    if named is None or not run.is_dir():
        raise InputError(f"solution {str(path)!r} has no model yet: call solve again, which goes on")
    return run
