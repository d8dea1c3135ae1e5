"""Baselines that every method must beat: logistic regression and label spreading, on the inputs or on features.

On features, logistic regression that is smoothed over unlabeled neighbors is one, too. Inputs that are entries of a
list, such as words, count as their TF-IDF, on which naive Bayes is another. Where examples have several classes,
logistic regression of each class against its absence is the only one.
"""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from sft_lightning.classifiers import Classifier, LabelSpreading, LogisticRegression, SmoothedLogisticRegression
from sft_lightning.classifiers.whitening import COMPONENTS, MAX_UNWHITENED, MAX_WHITENED, Whitened, suits_whitening
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms import feature_cache
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.paradigms.fitted_head import fit_head
from sft_lightning.tasks.multi_label import MultiLabel
from sft_lightning.transfer.vectors import stack_vectors
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

STARTS = "its start"  # stands for the features of the weights that a method starts from
_MAX_VALUES = 500_000_000  # numbers of all examples; more would not fit into the memory of a small machine
_ALL = ("labeled", "unlabeled", "test")
_STRENGTH = 10.0  # scikit-learn's C for TF-IDF, whose vectors have length 1
_GRAPH_VERSION = 2  # part of the key of stored results: raise it when one of both gives other results


def fit_logistic_regression(
    data: FewLabelDataModule, backbone: Encoder | None = None, by_example: bool = False
) -> float:
    """Train logistic regression on the labeled examples and return its test accuracy.

    Of examples with several classes, it is one of each class against its absence, and the mean average precision. Of
    inputs it is scikit-learn's with its defaults (of TF-IDF, C = 10), of features `LogisticRegression` with its own.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        backbone: Frozen network whose features to use, which are cached; None for the inputs themselves.
        by_example: Whether examples with several classes count by their F1, as in folds.

    Returns:
        Test accuracy, 0 to 1.

    Raises:
        InputError: The examples do not fit into memory as numbers, or some cannot be read.
    """
    from sklearn.linear_model import LogisticRegression as Plain

    if data.target == "class_set":
        task, y = MultiLabel(data.num_classes), data.make_targets(data.splits["test"].labels)
        logits = _fit_each_class(data, backbone)
        return float(task.example_scores(logits, y).mean()) if by_example else task.measure(logits, y)[task.metric[0]]
    if backbone is None and (vectors := _read_sparse(data)) is not None:
        x, x_test = vectors
        return _score(Plain(C=_STRENGTH, max_iter=1000), data, x, x_test)
    if backbone is None:
        (x, y), (x_test, y_test) = (_read_vectors(data, name) for name in ("labeled", "test"))
        model = Plain(max_iter=1000).fit(x.numpy(), y.numpy())
        return float(model.score(x_test.numpy(), y_test.numpy()))
    (x, y), (x_test, y_test) = (_extract_features(backbone, data, name) for name in ("labeled", "test"))
    predicted = LogisticRegression().fit(x, y).predict(x_test)
    return float((predicted == y_test).double().mean())


def _fit_each_class(data: FewLabelDataModule, backbone: Encoder | None) -> Tensor:
    """Train logistic regression of each class against its absence, and return the logits of the test split, (N, C)."""
    from sklearn.linear_model import LogisticRegression as Plain

    y = data.make_targets(data.splits["labeled"].labels)
    if backbone is not None:
        x, x_test = (_extract_features(backbone, data, name)[0] for name in ("labeled", "test"))
        head = nn.Linear(x.shape[1], data.num_classes, device=x.device)
        fit_head(head, "logistic_regression", x, y.to(x.device))
        with torch.no_grad():
            logits: Tensor = head(x_test)
        return logits.cpu()
    vectors = _read_sparse(data)
    strength = 1.0 if vectors is None else _STRENGTH
    inputs, tested = vectors or (_read_vectors(data, name)[0].numpy() for name in ("labeled", "test"))
    columns = []
    for own in y.T:
        if 0 < int(own.sum()) < len(own):
            model = Plain(C=strength, max_iter=1000).fit(inputs, own.numpy())
            columns.append(torch.from_numpy(model.decision_function(tested)).float())
        else:  # a class that all or none have gets its odds alone
            odds = ((own.sum() + 0.5) / (len(own) + 1)).logit()
            columns.append(odds.expand(len(data.splits["test"])))
    return torch.stack(columns, 1)


def fit_naive_bayes(data: FewLabelDataModule) -> float:
    """Train naive Bayes on the labeled examples and return its test accuracy.

    It is the complement naive Bayes of Rennie et al. 2003, which takes classes of different size better than the
    multinomial one, on TF-IDF.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.

    Returns:
        Test accuracy, 0 to 1.

    Raises:
        InputError: The inputs are measured values, of which naive Bayes knows nothing.
    """
    from sklearn.naive_bayes import ComplementNB

    data.require_one_class("naive Bayes")
    vectors = _read_sparse(data)
    if vectors is None:
        raise InputError(f"naive Bayes needs counts, such as those of words, and the data has {data.input_spec.plural}")
    return _score(ComplementNB(), data, *vectors)


def _score(model: Any, data: FewLabelDataModule, x: Any, x_test: Any) -> float:
    model.fit(x, data.splits["labeled"].labels.numpy())
    return float(model.score(x_test, data.splits["test"].labels.numpy()))


def _read_sparse(data: FewLabelDataModule) -> tuple[Any, Any] | None:
    """Return sparse matrices of the labeled and the test examples, or None where the inputs are numbers."""
    pieces = {
        name: (data.splits[name].part.storage, data.splits[name].indices) for name in _ALL if len(data.splits[name])
    }
    fitted = [pieces[name] for name in ("labeled", "unlabeled") if name in pieces]
    vectorize = pieces["labeled"][0].fit_vectorizer(fitted)
    return None if vectorize is None else (vectorize(*pieces["labeled"]), vectorize(*pieces["test"]))


def fit_label_spreading(data: FewLabelDataModule, backbone: Encoder | None = None) -> float:
    """Spread the labels over a graph of the training examples and return the test accuracy.

    The graph joins up to 15 neighbors: by 64 whitened principal components of the inputs, or by the cosine of 128 of
    the features where there are 1,280 examples, and of the features themselves where there are fewer. It has at most
    60,000 examples, or 20,000 with features; unlabeled ones are chosen by the seed. The result is kept in
    `lightning_logs/features/label_spreading`, since methods of a study share it.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        backbone: Frozen network whose features to use; None for the inputs themselves.

    Returns:
        Test accuracy, 0 to 1.

    Raises:
        InputError: The inputs have too many values for principal components, or labels of one class alone.
    """
    return _learn_from_pool("label_spreading", data, backbone)


def fit_smoothed_regression(data: FewLabelDataModule, backbone: Encoder) -> float:
    """Fit `SmoothedLogisticRegression` to the labeled and unlabeled examples and return the test accuracy.

    It learns from as many examples as label spreading on features does; the result is kept in
    `lightning_logs/features/smoothed_regression`.

    Args:
        data: Data module after `setup`, whose labels and splits are used unchanged.
        backbone: Frozen network whose features to use.

    Returns:
        Test accuracy, 0 to 1.

    Raises:
        InputError: The labels are of one class alone.
    """
    return _learn_from_pool("smoothed_regression", data, backbone)


def _learn_from_pool(name: str, data: FewLabelDataModule, backbone: Encoder | None) -> float:
    """Return the test accuracy of a classifier of labeled and unlabeled examples, and keep it in a folder of its name.

    Args:
        name: `label_spreading` or `smoothed_regression`.
        data: Data module after `setup`.
        backbone: Frozen network whose features to use; None for the inputs themselves.
    """
    data.require_one_class(name.replace("_", " "))
    stored = feature_cache.FOLDER / name / f"{_hash_graph(data, backbone)}.json"
    try:
        return float(read_json(stored, "remove it")["accuracy"])
    except (InputError, OSError, ValueError, TypeError, KeyError):  # none yet, or a damaged one, which is replaced
        accuracy = _fit_on_pool(name, data, backbone)
    write_json(stored, {"accuracy": accuracy})
    return accuracy


def _hash_graph(data: FewLabelDataModule, backbone: Encoder | None) -> str:
    """Hash everything that the result depends on."""
    names = ("labeled", "unlabeled", "test")
    splits = [data.fingerprint(name) if backbone is None else feature_cache.key(backbone, data, name) for name in names]
    labels = [data.splits[name].labels.tolist() for name in ("labeled", "test")]
    return hashlib.sha256(repr((_GRAPH_VERSION, splits, labels, data.request.seed)).encode()).hexdigest()


def _fit_on_pool(name: str, data: FewLabelDataModule, backbone: Encoder | None) -> float:
    most = MAX_WHITENED if backbone is None else MAX_UNWHITENED
    device = torch.device("cpu") if backbone is None else backbone.device
    _, y, _ = stack_vectors(data.labeled_batches(most, device), data, backbone)
    x, _, _ = stack_vectors(data.training_batches(most, device), data, backbone)
    x_test, y_test, _ = stack_vectors(data.batches_of("test", device), data, backbone)
    model: Classifier
    if name == "smoothed_regression":
        model = SmoothedLogisticRegression()
    elif backbone is None:
        model = Whitened(LabelSpreading(metric="euclidean"))
    else:
        model = Whitened(LabelSpreading(), COMPONENTS) if suits_whitening(x) else LabelSpreading()
    model.fit(x[: len(y)], y, x[len(y) :], data.num_classes)
    return float((model.predict(x_test) == y_test).double().mean())


def _extract_features(backbone: Encoder, data: FewLabelDataModule, name: str) -> tuple[Tensor, Tensor]:
    x = features(backbone, data, name)
    if x is None:
        raise InputError(f"source {data.source.name!r} has {name} examples that cannot be read: repair or remove them")
    return x.float(), data.splits[name].labels


def _read_vectors(data: FewLabelDataModule, name: str) -> tuple[Tensor, Tensor]:
    split, shape = data.splits[name], data.input_spec.shape
    if len(split) * math.prod(shape) > _MAX_VALUES:
        raise InputError(f"logistic regression on {len(split)} inputs of shape {shape} needs too much memory")
    pairs = [(data.views.flatten(batch.x), batch.y) for batch in data.batches_of(name, torch.device("cpu"))]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
