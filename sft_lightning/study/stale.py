"""Explain why runs of a study are trained again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.study.plan import StudyRun, simplify

_UNRECORDED = "An earlier version did not record the inputs of its runs"
_START = "The runs that they start from changed"


def explain_stale(
    runs: Sequence[StudyRun], waiting: Sequence[StudyRun], results: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return a sentence for each reason why runs that the study finished before are trained again.

    Args:
        runs: All runs of the study, each after the run that it starts from.
        waiting: Runs of these that have no result.
        results: All results of the study by key, including those of earlier calls.
    """
    former = {_identify(result): result for result in results.values() if "folder" in result}
    keys = {run.key for run in waiting if not _is_done(results.get(run.key))}
    reasons: dict[str, tuple[str, ...]] = {}
    for run in runs:
        former_result = former.get(simplify(run.title))
        if run.key not in keys or run.key in reasons or former_result is None:
            continue
        changes = _compare(former_result.get("inputs"), run.inputs or {})
        if not changes and run.start is not None and former_result.get("start") != run.start:
            changes = [*reasons.get(run.start, [_START])]
        if changes:
            reasons[run.key] = tuple(changes)
    counts = Counter(reasons.values())
    return [
        f"{'; '.join(changes)}: {count} run{'s are' if count > 1 else ' is'} trained again."
        for changes, count in counts.items()
    ]


def _is_done(result: Mapping[str, Any] | None) -> bool:
    return result is not None and "folder" in result


def _identify(result: Mapping[str, Any]) -> str:
    """Return the title of a result's run; version 0.1 has it in the name of the folder, before the key."""
    return simplify(result["title"]) if "title" in result else Path(result["folder"]).parent.name.rpartition("_")[0]


def _compare(old_inputs: Any, inputs: Mapping[str, Any]) -> list[str]:
    if not isinstance(old_inputs, dict):
        return [_UNRECORDED]
    names = _section(inputs, "names")
    changes: list[str] = []
    for part in ("source", "unlabeled_source", "split_file", "labels"):
        old, new = _section(_section(old_inputs, "data"), part), _section(_section(inputs, "data"), part)
        if old != new:
            changes += _compare_data(old, new, names.get(part) or part)
    changes += [f"{names.get(name, name)} changed" for name in _list_changed(old_inputs, inputs, "files")]
    changes += [f"The code of {name} changed" for name in _list_changed(old_inputs, inputs, "code")]
    settings = _list_changed(old_inputs, inputs, "config")
    if settings:
        changes.append(f"Settings changed ({', '.join(settings)})")
    if old_inputs.get("version") != inputs.get("version"):
        changes.append(f"sft-lightning {old_inputs.get('version')} trained them (this is {inputs.get('version')})")
    return changes


def _compare_data(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> list[str]:
    if not old or not new:
        return [f"{name} is {'new' if new else 'no longer used'}"]
    if old.get("count") != new.get("count"):
        return [f"{name} has {new.get('count')} examples, {old.get('count')} before"]
    parts = {"images": "examples", "labels": "labels", "groups": "groups"}  # `images` in the files of all versions
    changed = [shown for part, shown in parts.items() if old.get(part) != new.get(part)]
    if not changed and old.get("order") != new.get("order"):
        changed = ["order"]
    return [f"The {' and '.join(changed)} of {name} changed" if changed else f"{name} changed"]


def _list_changed(old_inputs: Mapping[str, Any], inputs: Mapping[str, Any], section: str) -> list[str]:
    old, new = _section(old_inputs, section), _section(inputs, section)
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _section(inputs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = inputs.get(name)
    return section if isinstance(section, dict) else {}
