"""The verdict of `solve` in sentences."""

from collections.abc import Sequence

from sft_lightning.data.class_names import format_class_names
from sft_lightning.solver.deliver import Delivery
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.study.judge import Comparison, Estimate, count_needed_labels


def format_estimate(estimate: Estimate) -> str:
    """Return a score, such as an accuracy, with its 95% interval.

    Args:
        estimate: Score.
    """
    return f"{estimate.mean:.1%} (95% interval {estimate.low:.1%} to {estimate.high:.1%})"


def _name_classes(names: Sequence[str]) -> str:
    return f"the class{'' if len(names) == 1 else 'es'} {format_class_names(names)}"


def format_verdict(
    best: str,
    num_recipes: int,
    source: LabeledSource,
    chosen: Estimate,
    comparison: Comparison | None,
    reference: str,
    delivery: Delivery,
    caveat: str = "",
    is_ahead: bool = True,
    method: str = "",
    test: tuple[int, float] | None = None,
) -> list[str]:
    """Return the verdict in sentences, the most important one first.

    Args:
        best: Name of the chosen recipe.
        num_recipes: Number of recipes that were compared.
        source: Source with the labels.
        chosen: Score of choosing and training.
        comparison: Best recipe with unlabeled examples against the best without; None where one kind is missing.
        reference: Name of the best recipe without unlabeled examples.
        delivery: What was made of the chosen recipe.
        caveat: Sentence on labels that count for unlabeled examples; empty where all count the same.
        is_ahead: Whether no recipe has a higher score than the chosen one.
        method: Sentence on how the intervals come about; empty where they are those of a mean.
        test: Number of examples that the source holds out, and the score on them; None without any.
    """
    spec = source.data.input_spec
    which = f"The best of {num_recipes} recipes is" if num_recipes > 1 else "The only recipe is"
    if not is_ahead:
        which = f"Of {num_recipes} recipes, none is clearly ahead of"
    labeled = "annotated" if source.data.has_boxes else "labeled"
    like = "unlabeled" if caveat else f"{len(source.labels)} {labeled}"
    what, found = f"{spec.plural} like the {like} ones", format_estimate(chosen)
    reach = source.measure.score_sentence.format(score=found, examples=what)
    sentences = [f"{which} {best}. A model chosen and trained this way {reach}."]
    sentences += [caveat] if caveat else []
    if source.unjudged:
        alone = "of which a single label or group cannot be held out"
        if source.data.has_boxes:
            alone = f"which a single annotated {spec.noun} or group shows"
        sentences.append(f"This figure does not cover {_name_classes(source.unjudged)}, {alone}: add {source.counted}.")
    if source.unlabeled_classes:
        sentences.append(
            f"The model never predicts {_name_classes(source.unlabeled_classes)}, for lack of labels: add some."
        )
    if test is not None:
        reach = source.measure.test_sentence.format(score=f"{test[1]:.1%}")
        sentences.append(f"On the {spec.count(test[0])} that the source holds out, {reach}.")
    if comparison is None and source.pool_size:
        sentences.append(
            f"Whether the unlabeled {spec.plural} help was not judged: what was left out says why, and how many "
            "minutes it takes."
        )
    elif comparison is None:
        sentences.append("There was nothing unlabeled to learn from.")
    else:
        points = f"{100 * comparison.difference:+.1f} points"
        interval = f"95% interval {100 * comparison.low:+.1f} to {100 * comparison.high:+.1f}"
        what = {
            "helped": f"The unlabeled {spec.plural} helped",
            "hurt": f"The unlabeled {spec.plural} hurt",
            "no evidence yet": f"Whether the unlabeled {spec.plural} help is not settled",
        }[comparison.verdict]
        sentences.append(f"{what}: {points} against {reference} ({interval}).")
        if comparison.verdict == "no evidence yet" and (needed := count_needed_labels(comparison)):
            sentences.append(f"About {needed:,} {source.counted} would settle it if the difference stays.")
    sentences += [method] if method else []
    sentences += delivery.advice
    return sentences
