"""Names of methods for readers: `freematch` of a study's file is shown as FreeMatch, `labels_only` as labels only."""

from collections import Counter
from collections.abc import Iterable

from sft_lightning.losses import unlabeled

# By their keys in a run's result.
BASELINES = {
    "logistic": "logistic regression",
    "smoothed": "smoothed logistic regression",
    "graph": "label spreading",
    "bayes": "naive Bayes",
    "common": "most common class",
}
_ON_START = " on the start of "

# Class names that are also the names in the literature: FixMatch and UDA, but not MeanTeacher.
_STRATEGIES = {name.lower(): name for name in unlabeled.__all__ if name.endswith("Match") or name.isupper()}


def name_baseline(method: str | None, inputs: str = "pixels", kind: str = "logistic") -> str:
    """Return the identifier of a baseline as a method.

    Args:
        method: Method whose starting weights give the features; None for the inputs themselves.
        inputs: Name of the inputs for readers, in the plural.
        kind: Key of `BASELINES`.
    """
    return f"{BASELINES[kind]} on {inputs}" if method is None else f"{BASELINES[kind]}{_ON_START}{method}"


def is_baseline(method: str) -> bool:
    """Return whether a method is a baseline that `name_baseline` has named.

    Args:
        method: Identifier of the method.
    """
    return method.startswith(tuple(f"{name} on " for name in BASELINES.values()))


def name_methods(methods: Iterable[str]) -> dict[str, str]:
    """Return the name of each method for readers, by its identifier.

    Methods whose names would be the same keep their identifiers.

    Args:
        methods: Identifiers from a study's file, and of `name_baseline`.
    """
    names = {method: _name(method) for method in methods}
    counts = Counter(names.values())
    return {method: name if counts[name] == 1 else method for method, name in names.items()}


def _name(method: str) -> str:
    baseline, on_start, start = method.partition(_ON_START)
    if on_start and baseline in BASELINES.values():
        return f"{baseline} on the initial features of {_name(start)}"
    return _STRATEGIES.get(method.lower()) or method.replace("_", " ")
