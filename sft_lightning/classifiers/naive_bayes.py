"""Complement naive Bayes: Rennie et al. 2003, "Tackling the Poor Assumptions of Naive Bayes Text Classifiers"."""

import torch
from torch import Tensor

from sft_lightning.classifiers.base import LinearClassifier, estimate_odds
from sft_lightning.utils.errors import InputError, check_positive


class ComplementNaiveBayes(LinearClassifier):
    """Naive Bayes whose weights of a class come from all other classes, on counts or weights of words.

    Classes of different size do less harm than with the multinomial variant. Probabilities are too modest, since
    weights of words are not counts; use it for the order of the classes.

    Where examples have several classes, each is a yes-or-no question whose odds start from those among the labels.
    """

    def __init__(self, smoothing: float = 1.0) -> None:
        """Check and store the settings.

        Args:
            smoothing: Count that is added to each word (scikit-learn's alpha).

        Raises:
            InputError: The setting is out of range.
        """
        super().__init__()
        check_positive(smoothing=smoothing)
        self.smoothing = smoothing

    def _fit_each(self, x: Tensor, y: Tensor) -> None:
        super()._fit_each(x, y)
        self.bias = estimate_odds(self.class_counts)

    def _fit_linear(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        from sklearn.naive_bayes import ComplementNB as Model

        if bool((x < 0).any()):
            raise InputError(
                "ComplementNaiveBayes needs counts, and some features are negative: use the backbone tfidf or "
                "bag_of_words, or another classifier"
            )
        model = Model(alpha=self.smoothing).fit(x.numpy(), y.numpy())
        return torch.from_numpy(model.feature_log_prob_), torch.zeros(len(model.classes_), dtype=torch.float64)
