"""`sft-lightning select`: which unlabeled examples to label first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers.whitening import COMPONENTS, WhitenedPCA, suits_whitening
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.open_data import open_data
from sft_lightning.report.figures import embed_example
from sft_lightning.runs.paths import LOGS
from sft_lightning.selection.methods import k_center, kmeans_centers, random_choice, typiclust
from sft_lightning.transfer.candidates import load_candidate, resolve_candidates
from sft_lightning.transfer.vectors import choose_device, stack_vectors
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.html import Section, render_page, render_tiles
from sft_lightning.utils.spreadsheet import format_csv

Method = Literal["kmeans", "typiclust", "k_center", "random"]
METHODS: dict[str, Callable[[Tensor, int, int, Tensor], Tensor]] = {
    "kmeans": kmeans_centers,
    "typiclust": typiclust,
    "k_center": k_center,
    "random": random_choice,
}
_DESCRIPTIONS = {
    "kmeans": "the example nearest to each center of k-means",
    "typiclust": "the most typical example of each cluster (TypiClust)",
    "k_center": "the example farthest from all chosen ones, again and again (k-center)",
    "random": "random examples",
}
_MAX_SHOWN = 200  # examples of a page


@dataclass
class Selection:
    """Examples to label.

    Attributes:
        ids: Names of the examples, the most useful first.
        positions: Their positions in the unlabeled split.
        data: Data module with the splits.
        num_candidates: Number of unlabeled examples that were chosen from.
        num_labeled: Number of labeled examples that the choice goes beside.
        space: Name of the features, for readers.
    """

    ids: list[str]
    positions: list[int]
    data: FewLabelDataModule
    num_candidates: int
    num_labeled: int
    space: str


def select(
    source: str,
    num_labels: int = 100,
    by: Method = "kmeans",
    start: str | None = None,
    image_size: int | None = None,
    hide_labels: bool = False,
    labels: str | None = None,
    seed: int = 0,
    out: str = f"{LOGS}/select",
) -> str:
    """Choose which unlabeled examples to label first, and write `select.csv` and `select.html`.

    Args:
        source: Source of the examples, as `data.init_args.source` takes it: a folder, a table, or the name of a data
            set.
        num_labels: Number of examples to choose.
        by: Method: `kmeans` (nearest to each center), `typiclust`, `k_center` or `random`.
        start: Network whose features to compare: a name (with published weights), a weights file or a run; null for
            whitened principal components of the pixels, or of the counts of words.
        image_size: Side of the images in pixels; null for that of the source or of the start.
        hide_labels: Whether to choose among all training examples as if none had a label. Otherwise, examples are
            chosen among those without a label, beside those that have one.
        labels: A CSV of labels beside the source, as `data.init_args.labels` takes it, or null.
        seed: Seed of the clusters and the random choice.
        out: Folder of both files.

    Returns:
        Summary with the paths.

    Raises:
        InputError: No example is unlabeled, or the start cannot be loaded.
    """
    chosen = select_examples(source, num_labels, by, start, image_size, hide_labels, labels, seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shown = chosen.data.show_examples("unlabeled", chosen.positions[:_MAX_SHOWN])
    rows: list[tuple[object, ...]] = [("order", "id"), *enumerate(chosen.ids, 1)]
    if isinstance(shown[0], str):  # a column with the examples themselves
        column = [chosen.data.input_spec.noun, *chosen.data.show_examples("unlabeled", chosen.positions)]
        rows = [(*row, cell) for row, cell in zip(rows, column, strict=True)]
    write_text(folder / "select.csv", format_csv(rows))
    beside = f", beside {chosen.num_labeled:,} labeled ones" if chosen.num_labeled else ""
    plural = chosen.data.input_spec.plural
    summary = (
        f"{len(chosen.ids):,} of {chosen.num_candidates:,} unlabeled {plural}{beside}: {_DESCRIPTIONS[by]}, by "
        f"{chosen.space}."
    )
    write_text(folder / "select.html", _render(chosen, shown, summary))
    return f"{summary}\nWritten: {folder / 'select.csv'} and {folder / 'select.html'}"


def select_examples(
    source: str,
    num_labels: int,
    by: Method = "kmeans",
    start: str | None = None,
    image_size: int | None = None,
    hide_labels: bool = False,
    labels: str | None = None,
    seed: int = 0,
    **sets: Any,
) -> Selection:
    """Choose which unlabeled examples to label first.

    Args:
        source: Source of the examples.
        num_labels: Number of examples to choose.
        by: Method.
        start: Network whose features to compare; None for whitened principal components of the inputs.
        image_size: Side of the images in pixels; None for that of the source or of the start.
        hide_labels: Whether to choose among all training examples.
        labels: A CSV of labels beside the source, or None.
        seed: Seed of the clusters and the random choice.
        sets: Settings of the data that give examples several classes.

    Raises:
        InputError: No example is unlabeled, or the start cannot be loaded.
    """
    check_min(1, num_labels=num_labels)
    settings: dict[str, Any] = {"num_labels": 0} if hide_labels else {}
    settings |= {"labels": labels, "seed": seed, **sets}
    data = _set_up(source, settings | {"image_size": image_size})
    unlabeled = data.splits["unlabeled"]
    if not len(unlabeled):
        raise InputError(
            f"source {source!r} has no examples without a label: add some, or set hide_labels: true to choose among "
            "all training examples"
        )
    backbone = None
    if start is not None:
        candidates = resolve_candidates(start)
        if len(candidates) != 1:
            raise InputError(f"start {start!r} holds {len(candidates)} runs: give one of them")
        backbone = load_candidate(candidates[0], data.input_spec, data.given_size)[0].to(choose_device())
        if backbone.input_spec != data.input_spec:
            data = _set_up(source, settings | data.settings_for(backbone.input_spec))
    device = torch.device("cpu") if backbone is None else backbone.device
    x, _, positions = stack_vectors(data.batches_of("unlabeled", device), data, backbone)
    count, labeled = len(x), torch.empty(0, dtype=torch.int64)
    if len(data.splits["labeled"]):
        x = torch.cat([x, stack_vectors(data.batches_of("labeled", device), data, backbone)[0]])
        labeled = torch.arange(count, len(x))
    if backbone is None:
        x = WhitenedPCA().fit(x.split(4096)).transform(x)
    else:
        whitened = WhitenedPCA(COMPONENTS).fit(x.split(4096)).transform(x) if suits_whitening(x) else x
        x = F.normalize(whitened, dim=1)
    chosen = positions[METHODS[by](x, min(num_labels, count), seed, labeled)].tolist()
    components = f"whitened principal components of the {data.views.inputs_name}"
    space = components if start is None else f"the features of {start}"
    ids = [data.splits["unlabeled"].ids[i] for i in chosen]
    return Selection(ids, chosen, data, count, len(labeled), space)


def _set_up(source: str, settings: dict[str, Any]) -> FewLabelDataModule:
    data = open_data(source, settings, {"on_bad_image": "skip", "on_bad_recording": "skip"})
    data.setup("fit")
    if data.bad.num_unreported:
        rank_zero_info(f"Data: {data.bad.summarize()}.")
    return data


def _render(chosen: Selection, shown: Sequence[Tensor | str], summary: str) -> str:
    """Return the page with the first examples."""
    tiles = [
        (embed_example(example, name), [f"{order}.", name])
        for order, (example, name) in enumerate(zip(shown, chosen.ids, strict=False), 1)
    ]
    plural = chosen.data.input_spec.plural
    title = f"{plural.capitalize()} to label"
    if len(shown) < len(chosen.ids):
        title = f"The first {len(shown)} {plural} to label"
    subtitle = f"{chosen.data.source.name}; all in select.csv"
    return render_page("What to label first", subtitle, [summary], [Section(title, render_tiles(tiles))])
