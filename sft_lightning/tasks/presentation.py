"""What pages and model cards ask of a task: titles of its metrics, and its answers in words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor


class TaskPresentation(ABC):
    """Part of a task that pages and model cards read.

    Attributes:
        metric_titles: Metrics that a model card lists, by their names; the first has an interval, and is the share of
            examples that are right where the evaluation gives none.
        hub_task: Name that hubs have for what its models do; None for that of the modality.
        hub_metrics: Type, name and title of the metrics for hubs of models.
        explained_class: Class of an example whose evidence a page shows: the one with the largest output.
        uneven_advice: Advice for a split in which some classes have far fewer examples than others.
        score_sentence: How good a model is, from the score and what it is about.
        test_sentence: The same of examples that are named before.
        uncertainty_note: Meaning of `uncertainty`, after "Uncertainty is".
    """

    metric_titles: ClassVar[dict[str, str]]
    hub_metrics: ClassVar[tuple[tuple[str, str, str], ...]]
    hub_task: ClassVar[str | None] = None
    explained_class: ClassVar[str]
    uneven_advice: ClassVar[str]
    uncertainty_note: ClassVar[str]
    score_sentence: ClassVar[str] = "is right on {score} of {examples}"
    test_sentence: ClassVar[str] = "it is right on {score}"

    @abstractmethod
    def uncertainty(self, outputs: Tensor) -> Tensor:
        """Return the entropy of each prediction as a share of the largest possible one, 0 to 1, (B,).

        Args:
            outputs: Outputs of the head, (B, ...).
        """

    @abstractmethod
    def confidence(self, outputs: Tensor) -> Tensor:
        """Return the probability of what is predicted, 0 to 1, (B,).

        Args:
            outputs: Outputs of the head, (B, ...).
        """

    @abstractmethod
    def describe_mistake(self, probabilities: Tensor, decided: Tensor, target: Tensor, names: Sequence[str]) -> str:
        """Return in a few words what was predicted of an example that has other classes.

        Args:
            probabilities: Probability of each class, (C,).
            decided: What is predicted, as `decide` gives it for one example.
            target: Target of the example.
            names: Names of the classes.
        """

    @abstractmethod
    def format_code(self, description: str | None) -> list[str]:
        """Return lines of NumPy that print what the array `logits` of a program says of its first example.

        Args:
            description: Name of the JSON file beside the program; None where it names no classes.
        """

    @abstractmethod
    def describe_aim(self) -> str:
        """Return what a classifier is for, as the verb of a sentence that starts with "To"."""

    @abstractmethod
    def explain_limit(self) -> str:
        """Return a sentence on examples of classes that were not learned."""
