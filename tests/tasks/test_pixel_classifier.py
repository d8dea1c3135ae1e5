"""Linear classifiers of pixels on frozen maps: what they see, how they are fitted, and what is made of them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import FrozenFeatureClassifier, SegmentationDataModule
from sft_lightning.__main__ import main
from sft_lightning.classifiers import LogisticRegression
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.data.batches import Labeled
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.vision.pyramid import collect_maps
from sft_lightning.tasks.pixel_samples import sample_pixels
from sft_lightning.utils.errors import InputError
from tests.scenes import write_scenes
from tests.tasks.test_segmentation import DATA, read_rows

FROZEN = ["--model=FrozenFeatureClassifier", *DATA, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
RUN = Path("lightning_logs/frozen/version_0")


def test_maps_stand_side_by_side_at_a_quarter_of_the_sides() -> None:
    x = torch.rand(2, 3, 32, 32)
    network = build_backbone("resnet8", (3, 32, 32), "none")[0].eval()
    network.stack_maps()
    assert network.decoder is not None
    maps = collect_maps(network.net, network.decoder.levels, x)
    assert [m.shape[-1] for m in maps] == [8, 4]
    expected = torch.cat([maps[0], F.interpolate(maps[1], size=(8, 8), mode="bilinear", align_corners=False)], 1)
    assert torch.equal(network(x), expected)
    assert network.num_features == expected.shape[1]
    colors = build_backbone("pixels", (3, 32, 32), "none")[0]
    colors.stack_maps()
    found = colors(x)
    assert found.shape == (2, 12, 8, 8)
    torch.testing.assert_close(found[:, :3], F.avg_pool2d(x, 4))
    torch.testing.assert_close(found[:, 9:], x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8))
    with pytest.raises(InputError, match="gives no maps, which masks, boxes and heat maps cannot be made from"):
        build_backbone("mlp", (3, 32, 32), "none")[0].stack_maps()


class Positions(Encoder):
    """A map whose features are the row and the column of each cell."""

    modality = "image"
    num_features = 2

    def forward(self, x: Tensor) -> Tensor:
        side = torch.arange(x.shape[-1] // 4.0)
        rows, columns = torch.meshgrid(side, side, indexing="ij")
        return torch.stack([rows, columns]).expand(len(x), -1, -1, -1)


def test_pixels_are_drawn_at_the_centers_of_cells_whatever_the_batches() -> None:
    y = torch.zeros(3, 16, 16, dtype=torch.long)
    y[:, 8:], y[0, :, 8:], y[1, 6, 10] = 1, -1, 2
    whole = Labeled(torch.rand(3, 3, 16, 16), y, torch.arange(3))
    parts = [Labeled(whole.x[rows], y[rows], rows) for rows in (torch.tensor([2, 0]), torch.tensor([1]))]
    sample = sample_pixels(Positions(), [whole], 5, 0)
    again = sample_pixels(Positions(), parts, 5, 0)
    assert all(torch.equal(a, b) for a, b in zip(sample, again, strict=True))
    assert sample.examples.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    centers = (4 * sample.x + 2).long()
    assert torch.equal(y[sample.examples, centers[:, 0], centers[:, 1]], sample.y)
    assert len(sample_pixels(Positions(), [whole], 99, 0).y) == 8 + 16 + 16
    few = sample_pixels(Positions(), [whole], 3, 1)
    assert (few.y[few.examples == 1].sort().values.tolist(), len(few.y)) == ([0, 1, 2], 9)
    with pytest.raises(InputError, match="the masks have no pixel that counts"):
        sample_pixels(Positions(), [whole._replace(y=torch.full_like(y, -1))], 5, 0)


def test_logistic_regression_of_pixels_is_a_run(workdir: Path) -> None:
    write_scenes(Path("d"), 26, 24)
    assert main(["fit", *FROZEN, "--run_name=frozen", "--model.max_examples=800"]) == 0
    assert main(["test", str(RUN)]) == 0
    tested = {row["metric"]: float(row["value"]) for row in read_rows(RUN / "metrics.csv")}
    assert tested["test/mean_iou"] > 0.6  # colors alone tell these classes apart, but for the edges of cells
    loaded = LoadedRun(str(RUN))
    data = loaded.data
    assert isinstance(data, SegmentationDataModule)
    network = build_backbone("pixels", (3, 32, 32), "none")[0]
    network.stack_maps()
    sample = sample_pixels(network, data.batches_of("labeled", torch.device("cpu")), 800 // 16, 0)
    fitted = LogisticRegression().fit(sample.x, sample.y, num_classes=3)
    torch.testing.assert_close(fitted.weight, loaded.trained.head["weight"])
    x = data.inputs_of("test", [0])
    assert isinstance(x, Tensor)
    small = fitted(network(x)[0].flatten(1).T).T.view(1, 3, 8, 8)
    expected = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    assert loaded.classify is not None
    torch.testing.assert_close(loaded.classify(loaded.trained.network()(x)), expected, rtol=1e-4, atol=1e-4)
    assert main(["predict", str(RUN), "d/images"]) == 0
    assert len(list((RUN / "predicted_masks").glob("*.png"))) == 26
    assert main(["report", str(RUN), "--label_next=2"]) == 0
    assert main(["export", str(RUN), "--format=onnx", "--measure_on=0"]) == 0
    assert json.loads((RUN / "model.onnx.json").read_text())["parity"]["equal_classes"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model.classifier=KNearestNeighbors"], "give LogisticRegression, Ridge or NearestClassMean"),
        (["--model.whiten=4"], "whiten is 4, and the examples have masks"),
    ],
)
def test_what_pixels_do_not_have_is_one_sentence(
    words: list[str], sentence: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(Path("d"), 12)
    assert main(["fit", *FROZEN, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_fitting_without_a_data_module_is_refused() -> None:
    model = FrozenFeatureClassifier(num_classes=3, input_spec=(3, 32, 32), target="mask")
    with pytest.raises(InputError, match="is not fitted"):
        model.classify(torch.zeros(1, 12, 8, 8))
