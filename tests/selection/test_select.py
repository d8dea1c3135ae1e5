import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from sft_lightning.selection import kmeans_centers
from sft_lightning.selection.select import select, select_examples
from sft_lightning.utils.errors import InputError


@pytest.fixture
def folder(workdir: Path, write_folder: Callable[..., Path]) -> str:
    return str(write_folder(workdir / "images", {"train": 12, "unlabeled": 30}))


def test_select_writes_a_table_and_a_page_of_images_without_labels(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["select", folder, "--num_labels", "6", "--out", "chosen", "--image_size=28"]) == 0
    said = capsys.readouterr().out
    assert "6 of 90 unlabeled images, beside " in said
    assert "by whitened principal components of the pixels" in said
    rows = list(csv.DictReader(Path("chosen/select.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["order"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert all("unlabeled" in row["id"] for row in rows)
    page = Path("chosen/select.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6
    assert all(row["id"] in page for row in rows)


def test_labels_can_be_hidden(folder: str) -> None:
    chosen = select_examples(folder, 9, "random", image_size=28, hide_labels=True)
    assert chosen.num_labeled == 0
    assert chosen.num_candidates > 90
    assert len(chosen.ids) == 9


def test_images_with_a_label_beside_the_source_are_not_chosen(folder: str) -> None:
    first = select_examples(folder, 6, image_size=28)
    Path("labels.csv").write_text("id,label\n" + "".join(f"{name},class_0\n" for name in first.ids))
    again = select_examples(folder, 6, image_size=28, labels="labels.csv")
    assert not {*again.ids} & {*first.ids}
    assert again.num_candidates == first.num_candidates - 6
    assert again.num_labeled > first.num_labeled


def test_features_of_a_network_are_compared_at_its_own_size(folder: str) -> None:
    torch.manual_seed(0)
    backbone, _ = build_backbone("conv", (1, 32, 32))
    write_weights(Path("start.safetensors"), backbone.state_dict(), backbone.describe())
    chosen = select_examples(folder, 6, start="start.safetensors")
    assert chosen.data.input_spec == backbone.input_spec
    assert chosen.space == "the features of start.safetensors"
    rest = chosen.data.batches_of("unlabeled", torch.device("cpu"))
    with torch.no_grad():
        features = F.normalize(torch.cat([backbone.eval()(batch.x) for batch in rest]), dim=1)
        labeled = [backbone(batch.x) for batch in chosen.data.batches_of("labeled", torch.device("cpu"))]
    x = torch.cat([features, F.normalize(torch.cat(labeled), dim=1)])
    assert chosen.positions == kmeans_centers(x, 6, 0, torch.arange(len(features), len(x))).tolist()


def test_features_of_many_examples_are_whitened(workdir: Path) -> None:
    torch.manual_seed(0)
    backbone, _ = build_backbone("mlp", (1, 28, 28))
    write_weights(Path("start.safetensors"), backbone.state_dict(), backbone.describe())
    chosen = select_examples("sample", 5, start="start.safetensors", hide_labels=True)
    with torch.no_grad():
        rest = chosen.data.batches_of("unlabeled", torch.device("cpu"))
        features = torch.cat([backbone.eval()(batch.x) for batch in rest])
    x = F.normalize(WhitenedPCA(128).fit([features]).transform(features), dim=1)
    assert chosen.positions == kmeans_centers(x, 5, 0).tolist()


def test_a_source_without_unlabeled_images_is_refused(workdir: Path, write_folder: Callable[..., Path]) -> None:
    source = str(write_folder(workdir / "labeled", {"train": 12}))
    with pytest.raises(InputError, match="has no examples without a label: add some, or set hide_labels: true"):
        select(source, 3)
