"""Ranking over the real command line: real runs as candidates, their scores calculated anew here."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.networks.vision.backbones import Backbone, build_backbone, find_source_head
from sft_lightning.transfer.candidates import Candidate, resolve_candidates
from sft_lightning.transfer.rank import rank, score_candidates
from sft_lightning.transfer.scores import cross_validate, h_score, leep, logme, nce
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.paradigms.helpers import cli


def data(**settings: Any) -> Any:
    return lambda **changed: ImageDataModule("sample", **{"num_labels": 60, "val_size": 30, **settings, **changed})


def fitted(name: str, *words: str, config: str = "fine_tune") -> Path:
    return Path(str(cli("fit", config, f"--run_name={name}", *words).trainer.log_dir))


def digits(classes: int = 7) -> list[str]:
    """Real digits with labels, as a source for `fit`."""
    pictures = load_digits()
    for k in range(classes):
        folder = Path("digits/train") / str(k)
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures.images[pictures.target == k][:8]):
            Image.fromarray((picture * 255 / 16).astype("uint8")).save(folder / f"{i}.png")
    words = ["source=digits", "image_size=28", "channels=1", "num_labels=null", "val_size=0", "test_size=7"]
    return [f"--data.init_args.{word}" for word in [*words, "num_workers=0"]]


def told(out: Path) -> list[dict[str, str]]:
    with (out / "rank.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def words(*candidates: str) -> list[str]:
    given = ["rank", "--data=ImageDataModule", "--data.init_args.num_labels=60", "--data.init_args.val_size=30"]
    return [*given, f"--candidates=[{', '.join(candidates)}]", "--out=found"]


def test_a_folder_of_runs_is_ranked_beside_names(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned = fitted("digits", *digits(), "--trainer.max_epochs=6")
    fitted("pictures", "--model.init_args.network=conv", config="autoencoder")
    assert main(words("{backbone: conv, weights: none}", "lightning_logs", "nonsense")) == 0
    shown = capsys.readouterr()
    found = {row["start"]: row for row in told(workdir / "found")}
    assert set(found) == {
        "conv (random)",
        "lightning_logs/digits/version_0",
        "lightning_logs/pictures/version_0",
        "nonsense (published)",
    }
    rows = [row for row in told(workdir / "found") if not row["failed"]]
    evidence = [float(row["logme"]) for row in rows]
    assert evidence == sorted(evidence, reverse=True)
    lines = shown.out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [row["start"] for row in rows]
    assert "left out: nonsense (published): backbone 'nonsense' is unknown" in shown.out
    assert "1/4  conv (random)" in shown.err
    with Image.open(workdir / "found" / "rank.png") as picture:
        assert min(picture.size) > 100
        assert len(set(picture.convert("L").resize((200, 40)).tobytes())) > 20  # not a blank sheet

    row = found["lightning_logs/digits/version_0"]
    source = data()()
    source.setup("fit")
    model = cli("test", "fine_tune", f"--ckpt_path={learned}", *digits()).model.eval()
    with torch.no_grad():
        (batch,) = source.batches_of("labeled", torch.device("cpu"))
        x = model.backbone(batch.x)
        probabilities = model.head(x).softmax(1)
    y = source.splits["labeled"].labels
    expected = {
        "logme": logme(x, y, 10),
        "h_score": h_score(x, y),
        "leep": leep(probabilities, y, 10),
        "nce": nce(probabilities.argmax(1), y),
        "linear": cross_validate(x, y, kind="linear")[0],
        "linear_error": cross_validate(x, y, kind="linear")[1],
        "knn": cross_validate(x, y, kind="knn")[0],
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-5)
    assert float(row["seconds"]) > 0
    assert row["seen"] == "0"  # its labels were those of digits
    assert found["conv (random)"]["leep"] == "" == found["lightning_logs/pictures/version_0"]["leep"]


@pytest.mark.parametrize("by", ["knn", "linear", "leep"])
def test_the_order_is_by_the_criterion_asked_for(workdir: Path, by: str) -> None:
    fitted("digits", *digits())
    given = ["lightning_logs", Candidate("mlp", "none"), Candidate("conv", "none"), Candidate("wrn_28_2", "none")]
    shown = rank(data(), given, by=by, out="found")  # type: ignore[arg-type]
    scores = [float(row[by] or "-inf") for row in told(workdir / "found")]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) >= (2 if by == "leep" else 3)
    assert [by.lower() in title.lower().replace("-", "") for title in shown.splitlines()[0].split("  ") if "*" in title]


def test_a_run_sees_inputs_of_its_own_size(workdir: Path) -> None:
    size = ["--data.init_args.image_size=20", "--data.init_args.channels=3"]
    run = fitted("small", "--model.init_args.backbone=conv", *size)
    (one,) = score_candidates(data(), [str(run)], 3)
    source = data(image_size=20, channels=3)()
    source.setup("fit")
    backbone, _ = build_backbone("conv", (3, 20, 20), str(run / "checkpoints" / "last.ckpt"))
    with torch.no_grad():
        (batch,) = source.batches_of("labeled", torch.device("cpu"))
        x = backbone.eval()(batch.x)
    assert one.scores["logme"] == pytest.approx(logme(x, source.splits["labeled"].labels, 10), abs=1e-5)
    for candidate in (Candidate("conv", str(run), 28), Candidate("conv", "none", 28)):
        (at_28,) = score_candidates(data(image_size=20, channels=3), [candidate], 3)
        (as_it_is,) = score_candidates(data(channels=3), [candidate], 3)
        assert at_28.scores == pytest.approx(as_it_is.scores, rel=1e-5)
        assert at_28.scores["logme"] != one.scores["logme"]
        assert "28 px" in str(candidate)


def test_runs_that_know_the_labels_are_marked(workdir: Path) -> None:
    same = ["--data.init_args.num_labels=60", "--data.init_args.val_size=30"]
    knows = fitted("knows", *same)
    other = fitted("other", *same, "--data.init_args.seed=1")
    blind = fitted("blind", *same, config="autoencoder")
    later = fitted("later", *digits(), f"--model.init_args.weights={knows}")
    assert main(["export", str(knows), "--part=backbone", "--out=part.safetensors"]) == 0
    found = {
        str(one.candidate): one.known_labels
        for one in score_candidates(data(), ["lightning_logs", "part.safetensors"], 3)
    }
    assert {found[str(run)] for run in (knows, later)} == {60}
    assert found["part.safetensors"] == 60
    assert found[str(blind)] == 0
    assert found[str(other)] < 10
    assert f"{knows} has learned from 60 of these labels" in rank(data(), [str(knows)], out="found")


def test_features_are_kept(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score_candidates(data(), [Candidate("mlp", "none"), Candidate("conv", "none")], 3)
    assert len(list((workdir / "lightning_logs" / "features").glob("*.safetensors"))) == 2

    def forward(self: Backbone, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(Backbone, "forward", forward)
    again = score_candidates(data(), [Candidate("mlp", "none"), Candidate("conv", "none")], 3)
    assert [one.scores for one in again] == [one.scores for one in first]


def test_published_classes_are_used(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights cannot be fetched here: a random network of the same shape stands in for the download."""
    torch.manual_seed(1)
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: tensors)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: tensors)
    (one,) = score_candidates(data(num_labels=20), ["torchvision/resnet18"], 2)
    source = data(num_labels=20)()
    source.setup("fit")
    net = torchvision.models.resnet18(weights=None)
    net.load_state_dict(tensors)
    (batch,) = source.batches_of("labeled", torch.device("cpu"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        probabilities = net.eval()((batch.x.expand(-1, 3, -1, -1) - mean) / std).softmax(1)
    y = source.splits["labeled"].labels
    assert one.scores["leep"] == pytest.approx(leep(probabilities, y, 10), abs=1e-4)


def test_a_file_of_a_library_brings_its_classes(workdir: Path) -> None:
    net = timm.create_model("resnet10t", num_classes=7)
    save_file(net.state_dict(), "theirs.safetensors")
    name = "timm/resnet10t"
    backbone, tensors = build_backbone(name, (1, 28, 28), "theirs.safetensors")
    head = find_source_head(backbone, tensors)
    assert torch.equal(head["weight"], net.state_dict()["fc.weight"])
    x = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        ours = F.linear(backbone.eval()(x), head["weight"], head["bias"])
        assert torch.allclose(ours, net.eval()((x - backbone.mean) / backbone.std), atol=1e-5)
    (one,) = score_candidates(data(num_labels=20), [Candidate(name, "theirs.safetensors")], 2)
    assert {"leep", "nce"} <= set(one.scores)


def test_versions_are_listed_in_the_order_of_their_numbers(workdir: Path) -> None:
    for k in (10, 9, 2):
        folder = Path(f"runs/a/version_{k}/checkpoints")
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    assert [Path(str(one)).name for one in resolve_candidates("runs")] == ["version_2", "version_9", "version_10"]
    assert [str(one) for one in resolve_candidates("runs/a/version_9")] == ["runs/a/version_9"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (words("empty"), "the folder 'empty', which holds no run"),
        (words(), "candidates is empty"),
        (words("{weights: none}"), "weights 'none' and no backbone"),
        (words("gone.safetensors"), "'gone.safetensors' does not exist"),
        (words("broken.safetensors"), "'broken.safetensors' cannot be read"),
        (words("nameless.safetensors"), "do not say which backbone they are of"),
        (words("{backbone: conv, weights: nameless.safetensors}"), "fit nothing"),
        ([*words("resnet10t"), "--folds=7"], "has 6 labeled example(s), fewer than the 7 folds: set folds to 6"),
        ([*words("resnet10t"), "--folds=1"], "folds is 1"),
        ([*words("resnet10t"), "--data.init_args.num_labels=10"], "class 'T-shirt/top' has 1 labeled example(s)"),
        ([*words("resnet10t"), "--data.init_args.num_labels=0"], "no labeled example"),
        ([*words("resnet10t"), "--by=acuracy"], "by is 'acuracy'"),
        ([*words("resnet10t"), "--by=logm"], "(did you mean 'logme'?)"),
        (["rank", "--candidates=[resnet10t]"], "data"),
        ([*words("resnet10t"), "--fold_count=3"], "'sft-lightning rank --help'"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(
    workdir: Path, given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "empty").mkdir()
    (workdir / "broken.safetensors").write_bytes(b"broken")
    save_file({"a.weight": torch.zeros(2, 2)}, "nameless.safetensors")
    assert main(given) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sft-lightning: ")
    assert sentence in last


def test_the_shipped_config_runs(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--config", str(CONFIGS / "reuse" / "rank.yaml")]) == 0
    assert "conv (random)" in capsys.readouterr().out


def test_groups_stay_together(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 4})
    lines = ["path,label,split,group"]
    lines += [f"{p.relative_to(workdir)},{p.parent.name},train,{p.parent.name}{k % 2}" for k, p in
              enumerate(sorted(folder.glob("train/*/*.png")))]  # fmt: skip
    (workdir / "grouped.csv").write_text("\n".join(lines))

    def grouped(**changed: Any) -> ImageDataModule:
        return ImageDataModule("grouped.csv", image_size=28, channels=1, val_size=0, test_size=0, num_workers=0)

    with pytest.raises(InputError, match=r"class 'class_0' has 2 group\(s\) .* fewer than the 3 folds"):
        score_candidates(grouped, [Candidate("mlp", "none")], 3)
    (one,) = score_candidates(grouped, [Candidate("mlp", "none")], 2)
    assert one.scores["knn"] >= 0


@pytest.mark.slow
def test_a_config_names_the_data_in_a_fresh_process(workdir: Path) -> None:
    """In the process of the tests, another import has made the class known."""
    words = ["rank", "--config", str(CONFIGS / "reuse" / "rank.yaml"), "--print_config"]
    shown = subprocess.run([sys.executable, "-m", "sft_lightning", *words], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "ImageDataModule" in shown.stdout
