"""Features that are computed once train the same head as features that are computed in each step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft_lightning import DecoupledFeatureClassifier, ImageDataModule, WeakView
from sft_lightning.data.splits import Split
from sft_lightning.losses.features import SupCon
from sft_lightning.networks.modes import eval_mode
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from sft_lightning.paradigms import feature_cache
from sft_lightning.paradigms.feature_cache import FOLDER, features, key
from tests.paradigms.helpers import SHAPE, Pictures, Recorder, classifier, cli, sample, trainer


def conv() -> Any:
    torch.manual_seed(1)
    return build_backbone("conv", SHAPE)[0]


def prepared(**settings: Any) -> ImageDataModule:
    data = sample(**settings)
    data.setup("fit")
    return data


def fitted(cached: bool, precision: Any = "32-true", model: Any = None, **settings: Any) -> tuple[Recorder, Any, int]:
    model = model or classifier("conv", tune="head", cache_features=cached)
    seen, pictures = Recorder(), Pictures(model.backbone)
    run = trainer([seen], max_epochs=3, precision=precision)
    run.fit(model, sample(num_labels=20, batch_size=10, **settings))
    return seen, run.callback_metrics, pictures.count


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_same_head_from_one_pass(workdir: Path, precision: str) -> None:
    with_cache, metrics, pictures = fitted(True, precision)
    without, expected, all_pictures = fitted(False, precision)
    tolerance = 1e-5 if precision == "32-true" else 2e-2
    assert with_cache.losses == pytest.approx(without.losses, rel=tolerance)
    for name in ("val/loss", "train/loss"):
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=tolerance)
    assert pictures == 20 + 30  # labeled and val, once
    assert all_pictures == 3 * (20 + 30)
    _, _, again = fitted(True, precision)
    assert again == 0  # from the disk


def test_a_decoupled_head_too(workdir: Path) -> None:
    made = [
        DecoupledFeatureClassifier(
            SupCon(), backbone="conv", num_classes=10, input_spec=SHAPE, tune="head", cache_features=cached,
            optimizer=lambda p: torch.optim.SGD(p, 0.05),
        )
        for cached in (True, False)
    ]  # fmt: skip
    made[1].load_state_dict(made[0].state_dict())
    runs = [fitted(False, model=model) for model in made]
    assert runs[0][0].losses == pytest.approx(runs[1][0].losses, rel=1e-5)
    assert float(runs[0][1]["val/knn_accuracy"]) == pytest.approx(float(runs[1][1]["val/knn_accuracy"]))


@pytest.mark.parametrize(
    ("settings", "of_data"),
    [
        ({"tune": "all"}, {}),
        ({"tune": "last_k_blocks"}, {}),
        ({"tune": "head", "cache_features": False}, {}),
        ({"tune": "head"}, {"weak_view": WeakView(crop_padding=2)}),
        ({"tune": "head"}, {"labeled_view": "strong"}),
        ({"tune": "head"}, {"steps_per_epoch": 1, "num_labels": 2000}),  # would see fewer than a pass
    ],
)
def test_where_features_change_or_a_pass_is_too_much(
    workdir: Path, settings: dict[str, Any], of_data: dict[str, Any]
) -> None:
    data = sample(**{"steps_per_epoch": 2, **of_data})
    trainer(max_epochs=1).fit(classifier("conv", **settings), data)
    assert not FOLDER.exists()


def test_the_key_is_of_weights_pictures_and_transform() -> None:
    first, second = conv(), conv()
    data = prepared()
    assert key(first, data, "labeled") == key(second, prepared(), "labeled")
    keys = {key(first, data, "labeled"), key(first, data, "val"), key(first, data, "labeled", "bf16-mixed")}
    keys |= {key(first, prepared(seed=1), "labeled"), key(first, prepared(num_labels=30), "labeled")}
    keys.add(key(first, prepared(image_size=32), "labeled"))
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-3
    keys.add(key(second, data, "labeled"))
    first.mean.fill_(0.1)
    keys.add(key(first, data, "labeled"))
    assert len(keys) == 8


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    backbone, data = conv(), prepared()
    made = features(backbone, data, "labeled", tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.warns(UserWarning, match=f"Cached features are not used and are computed again: .*{file.name}"):
        again = features(backbone, data, "labeled", tmp_path)
    assert made is not None
    assert again is not None
    assert torch.equal(made, again)
    assert file.read_bytes() == whole
    assert made.shape == (20, backbone.num_features)
    x = torch.cat([batch.x for batch in data.batches_of("labeled", torch.device("cpu"))])
    torch.testing.assert_close(backbone.eval()(x), made)


def test_features_that_are_not_numbers_are_computed_again(tmp_path: Path) -> None:
    backbone, data = conv(), prepared()
    made = features(backbone, data, "labeled", tmp_path)
    (file,) = tmp_path.iterdir()
    assert made is not None
    spoiled = made.clone()
    spoiled[3, 0] = torch.nan
    write_weights(file, {**load_file(file), "features": spoiled}, {})
    with pytest.warns(UserWarning, match="Cached features are not used and are computed again: .*NaN or infinite"):
        again = features(backbone, data, "labeled", tmp_path)
    assert again is not None
    assert torch.equal(made, again)


def test_features_of_examples_without_names_are_computed_again(tmp_path: Path) -> None:
    backbone, data = conv(), prepared()
    made = features(backbone, data, "labeled", tmp_path)
    (file,) = tmp_path.iterdir()
    assert made is not None
    write_weights(file, {"features": made}, {})  # as earlier versions wrote them
    with pytest.warns(UserWarning, match="does not say of which examples its features are"):
        again = features(backbone, data, "labeled", tmp_path)
    assert again is not None
    assert torch.equal(made, again)


def test_another_split_computes_only_examples_that_are_new(tmp_path: Path) -> None:
    backbone, data, more = conv(), prepared(num_labels=20), prepared(num_labels=30)
    assert features(backbone, data, "labeled", tmp_path) is not None
    pictures, shared = Pictures(backbone), {*data.splits["labeled"].ids} & {*more.splits["labeled"].ids}
    made = features(backbone, more, "labeled", tmp_path)
    assert shared
    assert pictures.count == 30 - len(shared)
    assert len([*tmp_path.iterdir()]) == 1
    x = torch.cat([batch.x for batch in more.batches_of("labeled", torch.device("cpu"))])
    assert made is not None
    torch.testing.assert_close(backbone.eval()(x), made)
    pictures.count = 0
    for one in (data, more):
        features(backbone, one, "labeled", tmp_path)
    assert pictures.count == 0
    assert {*data.splits} == {*prepared().splits}


def test_a_file_holds_one_split_where_two_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, data = conv(), prepared()
    monkeypatch.setattr(feature_cache, "MOST", 4 * 40 * backbone.num_features)
    made = [features(backbone, data, name, tmp_path) for name in ("labeled", "val")]
    (file,) = tmp_path.iterdir()
    assert len(load_file(file)["features"]) == len(data.splits["val"]) == 30
    pictures = Pictures(backbone)
    again = [features(backbone, data, name, tmp_path) for name in ("val", "labeled")][::-1]
    assert pictures.count == 20
    assert all(
        torch.equal(one, two) for one, two in zip(made, again, strict=True) if one is not None and two is not None
    )


def test_equal_examples_are_computed_once_and_each_gets_its_features(tmp_path: Path) -> None:
    backbone, data = conv(), prepared()
    split = data.splits["labeled"]
    data.splits["labeled"] = Split(split.part, [*split.indices[:3], *split.indices[:4][::-1]])
    pictures = Pictures(backbone)
    made = features(backbone, data, "labeled", tmp_path)
    assert pictures.count == 4
    assert made is not None
    assert torch.equal(made, made[[0, 1, 2, 3, 2, 1, 0]])
    assert len(made.unique(dim=0)) == 4


def test_modes_come_back() -> None:
    network = conv()
    network.net.eval()
    with eval_mode(network):
        assert not any(m.training for m in network.modules())
    assert network.training
    assert not network.net.training


def test_over_the_command_line_and_the_next_evaluation_sees_pictures(workdir: Path) -> None:
    words = ["--run_name=probe", "--model.init_args.tune=head", "--model.init_args.backbone=conv"]
    run = cli("fit", "fine_tune", *words)
    assert len(list(FOLDER.iterdir())) == 1
    tested = cli("test", "fine_tune", *words, f"--ckpt_path={run.trainer.log_dir}")
    validated = cli("validate", "fine_tune", *words, f"--ckpt_path={run.trainer.log_dir}")
    assert 2.0 < float(tested.trainer.callback_metrics["test/loss"]) < 2.5
    there, here = (float(r.trainer.callback_metrics["val/loss"]) for r in (run, validated))
    assert here == pytest.approx(there, rel=1e-4)
