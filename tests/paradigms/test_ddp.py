import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sft_lightning.paradigms.feature_cache import FOLDER
from tests.paradigms.ddp_worker import CLASSIFIERS
from tests.paradigms.helpers import classifier, left_by_ranks, moved, sample, state, trainer, two_processes

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fashion: tuple[Tensor, Tensor]) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    Image.fromarray(fashion[0][0].numpy()).save(out / "one.png")
    return two_processes("classifiers", out)


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Found:
    return left_by_ranks(folder)


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_backbone_stands_still_before_its_release_and_moves_after(ranks: Found, name: str) -> None:
    first, *later = ranks[0][name]["states"]
    assert moved(ranks[0][name]["before"], first) == {"head.weight", "head.bias"}
    weights = {n for n in first if n.startswith("backbone.net") and n.endswith("weight")}
    assert weights
    assert weights <= moved(first, later[0])


def test_an_adapter_stands_still_before_its_release_and_moves_after_it_alone(ranks: Found) -> None:
    first, *later = ranks[0]["lora"]["states"]
    assert moved(ranks[0]["lora"]["before"], first) == {"head.weight", "head.bias"}
    matrices = {n for n in first if ".lora_" in n and n.endswith("weight")}
    assert len(matrices) == 10
    assert moved(first, later[1]) == {*matrices, "head.weight", "head.bias"}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_replicas_are_equal_to_the_bit_before_and_after_the_release(ranks: Found, name: str) -> None:
    assert len(ranks[0][name]["after"]) == 3
    for mine, other in zip(ranks[0][name]["after"], ranks[1][name]["after"], strict=True):
        assert not moved(mine, other)


@pytest.mark.parametrize("kind", ["mlp", "lora", "cached"])
def test_two_processes_learn_what_one_with_the_whole_batch_learns(ranks: Found, kind: str) -> None:
    model = classifier(**{"backbone": kind, **CLASSIFIERS[kind], "cache_features": False})
    data = sample(val_size=61, batch_size=10, eval_batch_size=10)
    run = trainer(max_epochs=3)
    run.fit(model, data)
    for name, tensor in state(model).items():
        torch.testing.assert_close(ranks[0][kind]["states"][-1][name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    alone = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    for rank in ranks:  # 31 and 30 pictures, in 4 and 3 batches
        together = {n: v for n, v in rank[kind]["metrics"].items() if n.startswith("val/")}
        assert together == pytest.approx(alone, abs=1e-5)


def test_one_process_computes_the_features_and_the_other_reads_them(folder: Path, ranks: Found) -> None:
    assert [rank["cached"]["images"] for rank in ranks] == [20 + 61, 0]
    assert len(list((folder / FOLDER).iterdir())) == 1


def test_two_processes_test_what_one_tests(ranks: Found) -> None:
    model, data = classifier("mlp"), sample(val_size=61)
    model.load_state_dict(ranks[0]["mlp"]["states"][-1])
    test = trainer().test(model, data, verbose=False)[0]
    assert ranks[0]["test"] == pytest.approx(test, abs=1e-5)


def test_predictions_of_two_processes_are_one_file_in_the_order_of_the_pictures(folder: Path, ranks: Found) -> None:
    assert [p.name for p in folder.glob("*.csv")] == ["predictions.csv"]
    rows = list(csv.reader((folder / "predictions.csv").open()))
    data = sample()
    data.setup("predict")
    assert [row[0] for row in rows] == ["path", *data.splits["test"].ids]
    model = classifier("mlp")
    model.load_state_dict(ranks[0]["mlp"]["states"][-1])
    batches = [data.on_after_batch_transfer(raw, 0).x for raw in data.test_dataloader()]
    with torch.no_grad():
        expected = model.eval()(torch.cat(batches)).softmax(1)
    found = torch.tensor([[float(v) for v in row[2:]] for row in rows[1:]])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_one_file_for_two_processes(folder: Path, ranks: Found) -> None:
    (row,) = csv.DictReader((folder / "one" / "predictions.csv").open())
    with (folder / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))  # the same picture is the first of the test split
    assert row == {**first, "path": "one.png"}
