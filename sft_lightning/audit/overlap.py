"""What duplicates mean for training and evaluation, and how `fit` treats them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.data.split_stats import Pair, SplitStats
from sft_lightning.data.splits import Split, SplitConfig, without_leaks

_SPLIT_NAMES = {"test": "test", "val": "validation", "labeled": "labeled", "unlabeled": "unlabeled"}
_HELD_OUT = ("test", "val")
_LEAKS = (("test", "labeled"), ("test", "unlabeled"), ("test", "val"), ("val", "labeled"), ("val", "unlabeled"))
_COPIES = (("labeled",) * 2, ("labeled", "unlabeled"), ("unlabeled",) * 2, ("test",) * 2, ("val",) * 2)


def find_dropped(stats: Sequence[SplitStats[Any]], request: SplitConfig) -> set[tuple[str, int]]:
    """Find the examples that `fit` drops because their content equals, of files byte for byte, that of others.

    Args:
        stats: Statistics of all splits, before anything is dropped.
        request: Split settings of the run.

    Returns:
        Name of the split and position of each dropped example.
    """
    # Files that cannot be read are not asked for: they may be gone.
    readable = {one.name: [i for i, _ in one.readable] for one in stats}
    splits = {one.name: Split(one.split.part, [one.split.indices[i] for i in readable[one.name]]) for one in stats}
    kept = without_leaks(splits, replace(request, on_leak="drop", findings=[]))
    dropped = {name: set(splits[name].indices) - set(kept[name].indices) for name in splits}
    return {(one.name, i) for one in stats for i in readable[one.name] if one.split.indices[i] in dropped[one.name]}


def find_overlaps(
    exact: Sequence[Pair],
    near: Sequence[Pair],
    dropped: set[tuple[str, int]],
    request: SplitConfig,
    names: Sequence[str],
    plural: str,
) -> dict[str, list[CheckResult]]:
    """Sort duplicates into results by topic: leaks, harmless duplicates and label conflicts.

    Args:
        exact: Pairs of equal examples.
        near: Pairs of nearly equal examples.
        dropped: Dropped examples from `find_dropped`.
        request: Split settings of the run.
        names: Class names.
        plural: Word for several examples.
    """
    leaks, copies = [], []
    kinds = (("", exact), ("nearly ", near))
    for a, b in (*_LEAKS, *_COPIES):
        for kind, pairs in kinds:
            matching = [pair for pair in pairs if (pair.first[0].name, pair.second[0].name) == (a, b)]
            rows = [_make_row(pair, kind) for pair in matching]
            if (a, b) in _LEAKS:
                leaks.append(
                    CheckResult(
                        "leak",
                        _name_finding(a, b, kind, plural),
                        _advise_on_leak(matching, dropped, request, b),
                        rows,
                        contaminates=True,
                    )
                )
            else:
                copies.append(
                    CheckResult("duplicate", _name_finding(a, b, kind, plural), _advise_on_copies(a, b), rows)
                )
    conflicts = [_find_conflicts(kind, pairs, names, plural) for kind, pairs in kinds]
    return {"leaks into test or validation": leaks, "duplicates": copies, "label conflicts": conflicts}


def _name_finding(a: str, b: str, kind: str, plural: str) -> str:
    if a == b:
        return f"{_SPLIT_NAMES[a]} {plural} that {kind}equal an earlier one of their split"
    return f"{_SPLIT_NAMES[a]} {plural} that {kind}equal {'an' if b == 'unlabeled' else 'a'} {_SPLIT_NAMES[b]} one"


def _make_row(pair: Pair, kind: str) -> CheckRow:
    (one, i), (other, j) = pair.first, pair.second
    difference = f", difference {pair.difference:.2f}" if kind else ""
    return CheckRow(one.name, one.id(i), f"{kind}equals {other.id(j)}{difference}")


def _advise_on_leak(pairs: Sequence[Pair], dropped: set[tuple[str, int]], request: SplitConfig, b: str) -> str:
    """Say what `fit` does about leaked copies in split `b`, and what is left to the user."""
    mine = [(pair.second[0].name, pair.second[1]) in dropped for pair in pairs]
    byte_for_byte, others = sum(mine), len(mine) - sum(mine)
    if byte_for_byte and request.on_leak == "raise":
        return "fit stops here (on_leak: raise): remove one of each two"
    advice = (
        f"fit drops {'all' if not others else byte_for_byte} from {_SPLIT_NAMES[b]} (on_leak: drop)"
        if byte_for_byte
        else ""
    )
    if others:
        left = f"fit does not see {'them' if not advice else f'the other {others}'}: remove one of each two"
        advice = f"{advice}; {left}" if advice else left
    return advice


def _advise_on_copies(a: str, b: str) -> str:
    if a in _HELD_OUT:
        return "They count twice in every figure: remove one of each two"
    if a != b:
        return "The network sees them with and without their label, which harms no figure: remove one of each two"
    also = ", and take labels from your budget" if a == "labeled" else ""
    return f"They weigh twice in training{also}: remove one of each two"


def _find_conflicts(kind: str, pairs: Sequence[Pair], names: Sequence[str], plural: str) -> CheckResult:
    rows = []
    for pair in pairs:
        labels = [one.label(i) for one, i in (pair.first, pair.second)]
        if min(labels) >= 0 and labels[0] != labels[1]:
            one, i = pair.first
            detail = f"{names[labels[0]]!r}; {pair.second[0].id(pair.second[1])} is {names[labels[1]]!r}"
            rows.append(CheckRow(one.name, one.id(i), detail))
    name = f"{plural} that {kind}equal one of another class"
    return CheckResult("label_conflict", name, "One of the two labels is wrong: correct it, or remove both", rows)
