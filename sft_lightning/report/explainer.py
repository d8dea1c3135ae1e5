"""What in an example supports a prediction, as each modality shows it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from markupsafe import Markup
from torch import Tensor

from sft_lightning.modalities import get_modality, load
from sft_lightning.report.evaluation import Evaluation


class Explainer(ABC):
    """Draws examples with the evidence for a class.

    Attributes:
        title: Title of the section of a report.
        note: Sentences below the title.
        suits_tiles: Whether the drawing can stand for the example itself wherever it is shown.
    """

    title: ClassVar[str]
    note: ClassVar[str]
    suits_tiles: ClassVar[bool] = False

    def __init__(self, evaluation: Evaluation) -> None:
        """Keep the classifier.

        Args:
            evaluation: Evaluation of a classifier.
        """
        self.evaluation = evaluation

    @property
    def reason_against(self) -> str | None:
        """Sentence that says why this classifier cannot be explained, or None if it can."""
        return None

    @abstractmethod
    def draw(self, name: str, positions: Sequence[int], classes: Tensor) -> list[Markup]:
        """Return each example with its evidence.

        Args:
            name: Name of the split.
            positions: Positions in the split.
            classes: Class whose evidence to show for each, int64, (N,).
        """


def find_explainer(evaluation: Evaluation) -> Explainer | None:
    """Return what explains the predictions of a classifier, or None if its modality has nothing.

    Args:
        evaluation: Evaluation of a classifier.
    """
    path = get_modality(evaluation.data.input_spec.modality).explainer
    found: Explainer | None = load(path)(evaluation) if path else None
    return found
