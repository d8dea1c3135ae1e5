"""Preparation of splits from opened sources: unreadable files, other shapes, and splits of earlier runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.issues import Finding
from sft_lightning.data.run_splits import AllLabeled, RunSplit, leave_out_trained
from sft_lightning.data.source import Examples, Source, concatenated
from sft_lightning.data.split_checks import check_splits
from sft_lightning.data.split_files import read_split_file
from sft_lightning.data.splits import SplitConfig, Splits, make_splits, without_leaks
from sft_lightning.data.storage import RecordStorage, TensorStorage
from sft_lightning.utils.errors import InputError


def read_splits(
    source: Source,
    second: tuple[str, Examples] | None,
    request: SplitConfig,
    split_file: str | None,
    bad: BadFiles,
    shape_remedy: str | None,
    measures: bool = True,
    run: RunSplit | AllLabeled | None = None,
    starts: Sequence[Path] = (),
) -> tuple[Splits, list[Examples]]:
    """Read the sources and divide them into splits.

    Args:
        source: Source of labeled and unlabeled examples.
        second: Name and examples of another source, which then are the only unlabeled ones.
        request: Sizes and seed of the splits; findings are appended.
        split_file: A `split.csv` to reuse instead of making new splits.
        bad: Record of unreadable files, with the policy for them.
        shape_remedy: Settings that convert examples to one shape, or None if they are converted.
        measures: Whether the check of the files also decodes them for further measurements.
        run: Split of a run that is resumed or evaluated again, or all of a source; overrides the other settings.
        starts: Paths of the `split.csv` of runs that a new run starts from, whose labels it has already learned.

    Returns:
        The splits, and all collections that they draw from.

    Raises:
        InputError: The sources do not match, or do not have the requested examples.
    """
    parts = {name: readable(part, bad, measures) for name, part in source.load().items()}
    listed = list(parts.values())
    for name in ("val", "test"):
        if name in parts and not len(parts[name]):
            message = f"none of the {name} examples of {source.name} can be read"
            request.findings.append(Finding("unreadable", message, [name]))
    other = None
    if second is not None:
        name, other = second[0], readable(second[1], bad, measures)
        listed.append(other)
        if shape_remedy is not None:
            _check_shape(source.name, listed[0], name, other, shape_remedy)

    def choose(request: SplitConfig) -> Splits:
        if split_file is not None:
            return without_leaks(read_split_file(Path(split_file), listed, source.label_names), request)
        return make_splits(parts, other, request, source.class_names)

    if run is not None:
        splits = run.apply(source.name, source.label_names, parts, other, request, choose)
    else:
        splits = leave_out_trained(choose(request), starts, request, source.name)
    if run is not None or split_file is not None:  # whose labels may be fewer than requested
        request = replace(request, num_labels=None)
    is_trained = run is None or len(splits["labeled"]) or len(splits["unlabeled"])  # else it is only evaluated
    if is_trained and request.normal_class is None:
        # The names of the labels are those of the classes, but where a label is a set of them or a mask.
        names = source.label_names if request.label_sets is None else source.class_names
        check_splits(splits, parts, request, names)
    if bad.num_unreported:
        request.findings.append(Finding("unreadable", bad.summarize(), sorted(bad.reasons)))
    return splits, listed


def readable(part: Examples, bad: BadFiles, measures: bool = False) -> Examples:
    """Leave out the files that cannot be read.

    Args:
        part: Examples in files or in memory.
        bad: Record that the files are reported to; its policy may refuse them.
        measures: Whether the check of the files also decodes them for further measurements.
    """
    if not isinstance(part.storage, RecordStorage):
        return part
    broken = part.storage.unreadable(range(len(part)), measures)
    for i, reason in broken.items():
        bad.report(part.storage.path_of(i), reason)
    if not broken:
        return part
    rest = concatenated((part, [i for i in range(len(part)) if i not in broken]))
    assert isinstance(rest.storage, RecordStorage)
    rest.storage.facts = part.storage.facts
    return rest


def _check_shape(first_name: str, first: Examples, second_name: str, second: Examples, remedy: str) -> None:
    a, b = (tuple(p.storage.data.shape[1:]) if isinstance(p.storage, TensorStorage) else None for p in (first, second))
    if a and b and a != b:
        raise InputError(
            f"unlabeled_source {second_name!r} has examples of shape {b}, source {first_name!r} of {a}: set "
            f"{remedy} to convert both"
        )
