"""Refuse labels from which nothing can be learned or judged, with a sentence on what to add."""

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.modalities import Modality
from sft_lightning.utils.errors import InputError


def check_labels(name: str, data: FewLabelDataModule, modality: Modality) -> None:
    """Refuse labels from which nothing can be learned or judged.

    Args:
        name: Source, as the user gave it.
        data: Data module after its setup.
        modality: Kind of the examples.

    Raises:
        InputError: There are too few labels, or labels of too few classes.
    """
    if data.target == "mask":
        _check_masks(name, data)
    elif data.target == "boxes":
        _check_boxes(name, data)
    else:
        _check_classes(name, data, modality)


def _check_classes(name: str, data: FewLabelDataModule, modality: Modality) -> None:
    counts, labeled = data.labeled_counts(), data.splits["labeled"]
    named, has_sets = int((counts > 0).sum()), data.target == "class_set"
    if has_sets and not bool(((counts > 0) & (counts < len(labeled))).any()):
        raise InputError(
            f"source {name!r} has {len(labeled):,} labeled examples{_describe_unreadable(data)}, and no class that "
            "only some of them have: label more of them"
        )
    if named < 2 and not has_sets:
        raise InputError(
            f"source {name!r} has labels of {named} class(es){_describe_unreadable(data)}: label some examples of at "
            f"least two, by class folders, the column 'label', or `sft-lightning label {name} --class_names "
            "[NAME,NAME]` and --labels labels.csv"
            + (f"; or, {modality.solve.one_class}" if named == 1 and modality.solve.one_class else "")
        )


def _check_masks(name: str, data: FewLabelDataModule) -> None:
    """Refuse masks from which nothing can be learned or judged."""
    masks, counts = len(data.splits["labeled"]), data.labeled_counts()
    if masks < 2:
        raise InputError(
            f"source {name!r} has {masks} mask(s){_describe_unreadable(data)}: add some, since one is held out to "
            "judge what the others teach"
        )
    named = [one for one, count in zip(data.class_names, counts.tolist(), strict=True) if count]
    if len(named) < 2:
        raise InputError(
            f"source {name!r} has {masks:,} masks of {len(named)} class(es) ({', '.join(named)}): add masks with "
            "pixels of another class"
        )


def _check_boxes(name: str, data: FewLabelDataModule) -> None:
    """Refuse annotations from which nothing can be learned or judged."""
    annotated, held = len(data.splits["labeled"]), data.labeled_memberships()
    shown = [] if held is None else (held > 0).sum(0).tolist()
    examples = f"{annotated:,} annotated {data.input_spec.plural if annotated != 1 else data.input_spec.noun}"
    start = f"source {name!r} has {examples}{_describe_unreadable(data)}"
    if annotated < 2:
        raise InputError(f"{start}: annotate more, since one is held out to judge what the others teach")
    if max(shown, default=0) < 2:
        have = "that show no object" if not any(shown) else "of which no two show an object of the same class"
        raise InputError(
            f"{start} {have}: annotate more, since a class of a single one can be learned from but not judged"
        )


def _describe_unreadable(data: FewLabelDataModule) -> str:
    """Return how many files cannot be read and why the first cannot; empty where all can."""
    if not data.bad.reasons:
        return ""
    path, reason = min(data.bad.reasons.items())
    return f", and {len(data.bad.reasons):,} file(s) cannot be read, such as {path!r} ({reason})"
