"""Which trainings of a study are done anew, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.study.plan import StudyRun

_UNRECORDED = "An earlier version did not record what its trainings were made from"
_START = "What they start from changed since"


def explain_stale(
    runs: Sequence[StudyRun], waiting: Sequence[StudyRun], results: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return a sentence for each reason why trainings that the study has done before are done anew.

    Args:
        runs: All trainings of the study, each after the one that it starts from.
        waiting: Those of them that have no result.
        results: All results of the study by their keys, also those of former calls.
    """
    former = {_stem(result["folder"]): result for result in results.values() if "folder" in result}
    keys = {run.key for run in waiting if not _is_done(results.get(run.key))}
    reasons: dict[str, tuple[str, ...]] = {}
    for run in runs:
        before = former.get(run.folder.rpartition("_")[0])
        if run.key not in keys or run.key in reasons or before is None:
            continue
        found = _compare(before.get("inputs"), run.inputs or {})
        if not found and run.start is not None and before.get("start") != run.start:
            found = [*reasons.get(run.start, [_START])]
        if found:
            reasons[run.key] = tuple(found)
    counts = Counter(reasons.values())
    return [
        f"{'; '.join(own)}: {count} training{'s are' if count > 1 else ' is'} done anew."
        for own, count in counts.items()
    ]


def _is_done(result: Mapping[str, Any] | None) -> bool:
    return result is not None and "folder" in result


def _stem(folder: str) -> str:
    """Name of a training in the name of its folder, without its key."""
    return Path(folder).parent.name.rpartition("_")[0]


def _compare(then: Any, now: Mapping[str, Any]) -> list[str]:
    if not isinstance(then, dict):
        return [_UNRECORDED]
    names = _section(now, "names")
    found: list[str] = []
    for part in ("source", "unlabeled_source", "split_file"):
        old, new = _section(_section(then, "data"), part), _section(_section(now, "data"), part)
        if old != new:
            found += _compare_data(old, new, names.get(part) or part)
    found += [f"{names.get(name, name)} changed since" for name in _differing(then, now, "files")]
    found += [f"The code of {name} changed since" for name in _differing(then, now, "code")]
    settings = _differing(then, now, "config")
    if settings:
        found.append(f"Settings changed since ({', '.join(settings)})")
    if then.get("version") != now.get("version"):
        found.append(f"They were made by sft-lightning {then.get('version')} (this is {now.get('version')})")
    return found


def _compare_data(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> list[str]:
    if not old or not new:
        return [f"{name} is {'used now' if new else 'not used any more'}"]
    if old.get("count") != new.get("count"):
        return [f"{name} has {new.get('count')} images, {old.get('count')} before"]
    found = [part for part in ("images", "labels", "groups") if old.get(part) != new.get(part)]
    if not found and old.get("order") != new.get("order"):
        found = ["order"]
    return [f"The {' and '.join(found)} of {name} changed since" if found else f"{name} changed since"]


def _differing(then: Mapping[str, Any], now: Mapping[str, Any], section: str) -> list[str]:
    old, new = _section(then, section), _section(now, section)
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _section(inputs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = inputs.get(name)
    return found if isinstance(found, dict) else {}
