"""Names of methods for readers: `freematch` of a study's file is shown as FreeMatch, `labels_only` as labels only."""

from collections import Counter
from collections.abc import Iterable

from sft_lightning.losses import unlabeled

LOGISTIC = "logistic regression"
_ON_START = f"{LOGISTIC} on the start of "

# Class names that are also the names in the literature: FixMatch and UDA, but not MeanTeacher.
_STRATEGIES = {name.lower(): name for name in unlabeled.__all__ if name.endswith("Match") or name.isupper()}


def name_baseline(method: str | None, inputs: str = "pixels") -> str:
    """Return the identifier of logistic regression as a method.

    Args:
        method: Method whose starting weights give the features; None for regression on the inputs themselves.
        inputs: Name of the inputs for readers, in the plural.
    """
    return f"{LOGISTIC} on {inputs}" if method is None else f"{_ON_START}{method}"


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
    if method.startswith(_ON_START):
        return f"{LOGISTIC} on the initial features of {_name(method.removeprefix(_ON_START))}"
    return _STRATEGIES.get(method.lower()) or method.replace("_", " ")
