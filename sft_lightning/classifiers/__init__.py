"""Export all classifiers that are fitted without gradient steps, so that YAML can say `class_path: LabelSpreading`."""

from sft_lightning.classifiers.base import Classifier as Classifier, LinearClassifier as LinearClassifier
from sft_lightning.classifiers.co_trained_regression import CoTrainedRegression
from sft_lightning.classifiers.k_nearest_neighbors import KNearestNeighbors
from sft_lightning.classifiers.label_spreading import LabelSpreading
from sft_lightning.classifiers.logistic_regression import LogisticRegression
from sft_lightning.classifiers.naive_bayes import ComplementNaiveBayes
from sft_lightning.classifiers.nearest_class_mean import NearestClassMean
from sft_lightning.classifiers.ridge import Ridge
from sft_lightning.classifiers.smoothed_regression import SmoothedLogisticRegression

__all__ = [
    "CoTrainedRegression",
    "ComplementNaiveBayes",
    "KNearestNeighbors",
    "LabelSpreading",
    "LogisticRegression",
    "NearestClassMean",
    "Ridge",
    "SmoothedLogisticRegression",
]
