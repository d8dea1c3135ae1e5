"""Weights of classes change how much an example counts, never which answer is right."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import DecoupledFeatureClassifier, FineTuneClassifier, SemiSupervisedModule
from sft_lightning.losses.features.supcon import SupCon
from sft_lightning.losses.unlabeled.mixmatch import MixMatch
from sft_lightning.tasks.class_weights import order_weights
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, sample, trainer

COUNTS = torch.tensor([190.0, 8.0])


def best_answer(weights: list[float], smoothing: float, label: int) -> Tensor:
    """The probabilities at which the loss of an example is least."""
    model = FineTuneClassifier("mlp", 2, (1, 2, 2), class_weights=weights, label_smoothing=smoothing)
    logits = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model._supervised(torch.tensor([label]), logits)
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(loss)
    return logits.detach().softmax(1)[0]


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
@pytest.mark.parametrize("label", [0, 1])
def test_the_best_answer_is_the_smoothed_label_whatever_the_weights(smoothing: float, label: int) -> None:
    best = best_answer((COUNTS.sum() / (2 * COUNTS)).tolist(), smoothing, label)
    wanted = torch.full((2,), smoothing / 2)
    wanted[label] += 1 - smoothing
    torch.testing.assert_close(best, wanted, atol=1e-3, rtol=0)


def test_an_example_counts_by_the_weight_of_its_class() -> None:
    model = FineTuneClassifier("mlp", 2, (1, 2, 2), class_weights=[1.0, 3.0], label_smoothing=0.1)
    plain = FineTuneClassifier("mlp", 2, (1, 2, 2), label_smoothing=0.1)
    logits, y = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1])
    each = [plain._supervised(y[k : k + 1], logits[k : k + 1]) for k in (0, 1)]
    torch.testing.assert_close(model._supervised(y, logits), (each[0] + 3 * each[1]) / 4)


@pytest.mark.parametrize("settings", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("kind", ["strategy MixMatch", "head nearest_class_mean"])
def test_settings_of_a_loss_that_is_not_used_are_refused(kind: str, settings: dict[str, Any]) -> None:
    shared = {"backbone": "mlp", "num_classes": 10, "input_spec": SHAPE, "optimizer": torch.optim.Adam, **settings}
    if kind == "strategy MixMatch":
        model: FineTuneClassifier = SemiSupervisedModule(MixMatch(), **shared)
    else:
        model = DecoupledFeatureClassifier(SupCon(), head="nearest_class_mean", **shared)
    with pytest.raises(InputError, match=f"{next(iter(settings))} is set, but {kind}"):
        trainer().fit(model, sample())


def test_weights_by_name_follow_the_order_of_the_classes() -> None:
    assert order_weights({"dog": 2.0, "cat": 1.0, "1": 3.0}, ["1", "cat", "dog"], 3).tolist() == [3, 1, 2]
    given: dict[Any, float] = {2: 5.0, 1: 4.0}  # as YAML reads them
    assert order_weights(given, ["1", "2"], 2).tolist() == [4, 5]
    assert order_weights([2.0, 1.0], None, 2).tolist() == [2, 1]
    assert order_weights("balanced", ["a", "b"], 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"cat": 1.0}, "names the classes 'cat', the data has 'cat', 'dog': give each class a weight"),
        ({"cat": 1.0, "dog": 2.0, "Dog": 3.0}, "names the classes 'cat', 'dog', 'Dog', the data has"),
        ({"cat": 1.0, "dgo": 2.0}, "names the classes 'cat', 'dgo', the data has"),
        ([1.0], "has 1 numbers for 2 classes: give one each"),
        ([1.0, 2.0, 3.0], "has 3 numbers for 2 classes: give one each"),
        ([1.0, 0.0], r"\[1\] is 0.0: give a number above 0"),
        ([1.0, float("inf")], r"\[1\] is inf: give a number above 0"),
        ({"cat": float("nan"), "dog": 1.0}, r"\[cat\] is nan: give a number above 0"),
        ({"cat": 1.0, "dog": -1.0}, r"\[dog\] is -1.0: give a number above 0"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(weights: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"class_weights ?{said}"):
        order_weights(weights, ["cat", "dog"], 2)
