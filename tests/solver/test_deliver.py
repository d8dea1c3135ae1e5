"""What `solve` delivers: a folder that commands take as a run, calibrated predictions, and exported files."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.weights import find_weights, read_weights, write_weights
from sft_lightning.paradigms import feature_cache
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.temperature import FILE, CrossFittedTemperature, read_temperature, write_temperature
from sft_lightning.solver.deliver import remove_earlier
from sft_lightning.solver.trials import Trials
from sft_lightning.transfer.candidates import Candidate, resolve_candidates
from sft_lightning.utils.errors import InputError


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_nothing_that_an_earlier_call_wrote_stays(tmp_path: Path) -> None:
    written = ("summary.json", "report.html", "predictions.csv", "predictions_coco.json", "label_next.csv")
    for name in (*written, "model.onnx", "predicted_boxes/a.jpg", "predicted_masks/b.png", "units/c", "plan.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_earlier(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "units"]


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory, write_folder: Callable[..., Path]) -> Path:
    """A folder of images, whose labels are hard to tell apart, and its solution."""
    folder = tmp_path_factory.mktemp("solved")
    write_folder(folder / "images", {"train": 4, "unlabeled": 30}, classes=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            "sft_lightning.solver.scored.choose_recipe", lambda scores, *_, **__: len(scores) - 1
        )  # label spreading
        solve("images", minutes=0.1, name="mine", image_size=16)
    return folder


@pytest.fixture
def solution(solved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(solved)
    return Path("lightning_logs/solve/mine")


def test_new_images_get_the_calibrated_probabilities_of_the_pool(solution: Path) -> None:
    """The folder stands for its run, and the temperature of the held-out labels comes with it."""
    assert main(["predict", str(solution), "images/unlabeled"]) == 0
    summary = json.loads((solution / "summary.json").read_text())
    run = Path(summary["run"])
    names = [f"p(class_{k})" for k in range(5)]
    pool = {Path(row["id"]).name: row for row in read_table(solution / "predictions.csv")}
    new = {row["path"]: row for row in read_table(run / "predictions.csv")}
    assert pool.keys() == new.keys()
    assert len(pool) == 150
    ours, theirs = (np.array([[float(rows[one][name]) for name in names] for one in pool]) for rows in (pool, new))
    assert np.abs(ours - theirs).max() < 1e-3
    assert abs(np.log(summary["temperature"])) > 0.1
    known = read_temperature(run / "checkpoints" / "last.ckpt")
    assert known == CrossFittedTemperature(summary["temperature"], 20)
    confidence = ours.max(1).mean()
    assert abs(confidence - summary["accuracy"][0]) < 0.2  # as sure as it is right


def test_features_of_a_start_are_computed_once(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, write_folder: Callable[..., Path]
) -> None:
    """Fitting, predicting the pool and a second call with further labels take those that judged the start."""
    write_folder(Path("images"), {"train": 4, "unlabeled": 10}, classes=3)
    encoder, _ = build_encoder("timm/test_resnet", (3, 64, 64))
    write_weights(Path("weights.safetensors"), encoder.state_dict(), encoder.describe())
    start = Candidate(weights="weights.safetensors", image_size=64)
    passes: list[int] = []
    compute = feature_cache._compute

    def counted(backbone: Any, data: Any, split: str, positions: list[int], context: Any) -> Any:
        passes.append(len(positions))
        return compute(backbone, data, split, positions, context)

    monkeypatch.setattr(feature_cache, "_compute", counted)
    monkeypatch.setattr("sft_lightning.solver.solvers.judge_trainings", lambda trials: None)
    monkeypatch.setattr("sft_lightning.solver.deliver.predict_split", None)
    monkeypatch.setattr("sft_lightning.solver.deliver.EXPORTS", {})
    for name in ("label spreading", "smoothed logistic regression"):
        choice = f"{name} on weights.safetensors, 64 px"
        monkeypatch.setattr(Trials, "choose", lambda trials, among=None, choice=choice: find(trials, choice))
        solved = solve("images", minutes=9, name="mine", candidates=start)
        assert solved.summary["recipe"] == choice
        assert passes == [12, 30]
        pool = {Path(row["id"]).name: row for row in read_table(solved.folder / "predictions.csv")}
        assert main(["predict", str(solved.folder), "images/unlabeled"]) == 0
        new = {Path(row["path"]).name: row for row in read_table(solved.run / "predictions.csv")}
        columns = [f"p(class_{k})" for k in range(3)]
        ours, theirs = (np.array([[float(rows[one][c]) for c in columns] for one in pool]) for rows in (pool, new))
        assert np.abs(ours - theirs).max() < 1e-3
    ids = [*read_table(solved.folder / "label_next.csv")][:2]
    Path("labels.csv").write_text("id,label\n" + "".join(f"{row['id']},class_0\n" for row in ids))
    solve("images", minutes=9, name="mine", candidates=start, labels="labels.csv")
    assert passes == [12, 30]


def find(trials: Trials, name: str) -> int:
    return [result.recipe.name for result in trials.results].index(name)


def test_label_spreading_is_exported_as_a_program(solution: Path) -> None:
    """The graph becomes a product with its examples, which a file of weights cannot say."""
    onnxruntime = pytest.importorskip("onnxruntime")
    summary = json.loads((solution / "summary.json").read_text())
    assert summary["recipe"] == "label spreading on pixels"
    assert [*summary["not_exported"]] == ["model.safetensors"]
    assert not (solution / "model.safetensors").exists()
    page = (solution / "report.html").read_text()
    assert "classifies by its examples, which safetensors does not hold." in page
    assert "model.onnx runs without this package" in page
    session = onnxruntime.InferenceSession(str(solution / "model.onnx"))
    pool = read_table(solution / "predictions.csv")[:5]
    images = [Image.open(Path("images", row["id"])).convert("RGB") for row in pool]
    pixels = np.stack([np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)) for image in images])
    logits = torch.from_numpy(session.run(None, {"images": pixels.transpose(0, 3, 1, 2)})[0])
    temperature = json.loads((solution / "model.onnx.json").read_text())["temperature"]["value"]
    expected = [[float(row[f"p(class_{k})"]) for k in range(5)] for row in pool]
    torch.testing.assert_close((logits / temperature).softmax(1), torch.tensor(expected), atol=1e-3, rtol=0)


def test_every_command_takes_the_folder_for_its_run(solution: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((solution / "summary.json").read_text())["run"]
    assert main(["lineage", str(solution)]) == 0
    assert run in capsys.readouterr().out
    assert find_run_checkpoint(str(solution)) == Path(run) / "checkpoints" / "last.ckpt"
    assert find_weights(solution) == Path(run) / "checkpoints" / "last.ckpt"
    assert resolve_candidates(str(solution)) == [Candidate(weights=run)]


def test_a_solution_may_be_moved(solution: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(solution, moved)
    assert find_run_checkpoint(str(moved)).is_relative_to(moved)
    (moved / "summary.json").unlink()
    with pytest.raises(InputError, match="elsewhere' has no model yet: call solve again, which goes on"):
        find_run_checkpoint(str(moved))


def test_a_temperature_belongs_to_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    (tmp_path / "fit.yaml").write_text("{}")
    assert read_temperature(checkpoint) is None
    write_temperature(tmp_path, checkpoint, CrossFittedTemperature(1.5, 20))
    assert read_temperature(checkpoint) == CrossFittedTemperature(1.5, 20)
    content = (tmp_path / FILE).read_text()
    for wrong in ("-1.5", '"much"', "Infinity"):
        (tmp_path / FILE).write_text(content.replace("1.5", wrong))
        with pytest.raises(InputError, match="holds no temperature above 0: remove it"):
            read_temperature(checkpoint)
    (tmp_path / FILE).write_text(content)
    checkpoint.write_bytes(b"others")
    assert read_temperature(checkpoint) is None


def test_exported_files_are_calibrated_and_agree_with_the_predictions(
    workdir: Path, write_folder: Callable[..., Path]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = write_folder(workdir / "images", {"train": 8, "test": 4}, classes=7)
    solution = solve(str(folder), minutes=0.1, name="layers", image_size=16)
    assert solution.summary["not_exported"] == {}
    temperature = solution.summary["temperature"]
    expected = {"value": temperature, "held_out_labels": 56}
    assert read_weights(solution.folder / "model.safetensors")[1]["temperature"] == expected
    assert json.loads((solution.folder / "model.onnx.json").read_text())["temperature"] == expected
    assert (
        f"the temperature {temperature:.3f}, under which 56 labels, held out in turn, are likeliest"
        in (solution.folder / "model_card.md").read_text()
    )
    session = onnxruntime.InferenceSession(str(solution.folder / "model.onnx"))
    data = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    logits = torch.from_numpy(session.run(None, {"images": data.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(logits, solution.model(data.float() / 255), atol=1e-3, rtol=1e-3)
