"""The report of a solution: the verdict first, then recipes, what to label next, and labels to check."""

from collections.abc import Sequence

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.label_sets import show_label
from sft_lightning.report.figures import embed_examples
from sft_lightning.runs.paths import LOGS
from sft_lightning.solver.deliver import ONNX, Delivery
from sft_lightning.utils.html import Section, render_page, render_paragraphs, render_table, render_tiles

_MAX_DOUBTFUL = 24


def render_solution(
    name: str,
    verdict: Sequence[str],
    recipes: Sequence[Sequence[str]],
    left_out: Sequence[str],
    delivery: Delivery,
    data: FewLabelDataModule,
    metric: str,
) -> str:
    """Return the page.

    Args:
        name: Name of the solution.
        verdict: Sentences, the most important one first.
        recipes: Name, use of unlabeled examples and score of each recipe.
        left_out: Sentences about what was not tried, or failed.
        delivery: What was made of the chosen recipe.
        data: Data module of the source.
        metric: Title of the score, such as accuracy.
    """
    head = ["recipe", f"uses unlabeled {data.input_spec.plural}", f"{metric} on held-out labels"]
    sections = [
        Section("Recipes", render_table(head, recipes)),
        Section("Use it", render_paragraphs(_describe_use(name, delivery))),
        Section("Left out", render_paragraphs([f"{sentence[:1].upper()}{sentence[1:]}." for sentence in left_out])),
    ]
    if delivery.next_labels:
        ids = [data.splits["unlabeled"].ids[i] for i in delivery.next_labels]
        examples = delivery.next_shown or embed_examples(data, "unlabeled", delivery.next_labels, ids)
        tiles = [
            (example, [f"{order}.", one]) for order, (example, one) in enumerate(zip(examples, ids, strict=True), 1)
        ]
        sections.append(Section("Label these next", render_tiles(tiles)))
    if delivery.doubtful:
        shown = delivery.doubtful[:_MAX_DOUBTFUL]
        split = data.splits["labeled"]
        examples = delivery.doubtful_shown or embed_examples(data, "labeled", shown, [split.ids[i] for i in shown])
        tiles = [
            (example, [*([] if delivery.doubtful_shown else [_name_label(data, i)]), doubt, split.ids[i]])
            for example, i, doubt in zip(examples, shown, delivery.doubts, strict=False)
        ]
        sections.append(Section("Labels to check", render_tiles(tiles)))
    return render_page(f"Solution {name}", data.source.name, verdict, sections)


def _name_label(data: FewLabelDataModule, position: int) -> str:
    """Return a line with the label of an example."""
    (name,) = data.name_targets(data.make_targets(data.splits["labeled"].labels[position : position + 1]))
    return f"labeled {show_label(name, data.label_sets)}"


def _describe_use(name: str, delivery: Delivery) -> list[str]:
    words = f" --model.score_threshold {delivery.score_threshold:.2f}" if delivery.score_threshold else ""
    sentences = [f"sft-lightning predict {LOGS}/solve/{name} NEW_DATA{words} writes their {delivery.writes}."]
    if ONNX not in delivery.not_exported:
        how = ", with the temperature" if delivery.calibration.value != 1 else ""
        sentences.append(f"{ONNX} runs without this package; model_card.md shows how{how}.")
        if delivery.not_exported:
            sentences.append("It holds vectors of examples that it classifies by: share it as you would share them.")
    for file, reason in delivery.not_exported.items():
        sentences.append(f"{file} was not written: {reason}.")
    return sentences
