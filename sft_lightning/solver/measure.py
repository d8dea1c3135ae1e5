"""What recipes are judged by, for summaries and sentences."""

from typing import NamedTuple

from sft_lightning.tasks.base import Task


class Measure(NamedTuple):
    """Measure of a recipe.

    Attributes:
        key: Name in summaries.
        title: Title for readers.
        score_sentence: How good a model is, from the score and what it is about.
        test_sentence: The same of examples that are named before.
    """

    key: str
    title: str
    score_sentence: str
    test_sentence: str


MEAN_AVERAGE_PRECISION = Measure(
    "map",
    "mean average precision",
    "has a mean average precision of {score} on {examples}",
    "its mean average precision is {score}",
)


def measure_of(task: Task) -> Measure:
    """Return the measure of a task whose score is a mean over examples.

    Args:
        task: Kind of target.
    """
    return Measure(*task.example_metric, task.score_sentence, task.test_sentence)
