"""The explainers by modality."""

from sft_lightning.report.attention import GradCAM
from sft_lightning.report.evaluation import Evaluation
from sft_lightning.report.explainer import Explainer
from sft_lightning.report.word_relevance import WordRelevance

EXPLAINERS: dict[str, type[Explainer]] = {"audio": GradCAM, "image": GradCAM, "text": WordRelevance}


def find_explainer(evaluation: Evaluation) -> Explainer | None:
    """Return what explains the predictions of a classifier, or None if its modality has nothing.

    Args:
        evaluation: Evaluation of a classifier.
    """
    kind = EXPLAINERS.get(evaluation.data.input_spec.modality)
    return None if kind is None else kind(evaluation)
