import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.data import few_label_datamodule
from sft_lightning.data.bad_examples import SKIPPED
from sft_lightning.data.batches import Labeled, Unlabeled
from sft_lightning.data.contract import BatchRequest
from sft_lightning.data.loaders import EvalLoader
from sft_lightning.data.vision.datamodule import MANIFEST
from sft_lightning.data.vision.sources import FASHION
from sft_lightning.data.vision.views import StrongView, WeakView, to_float, weak
from sft_lightning.utils.errors import InputError
from tests.data.conftest import MakeFolder, break_middle, write_image, write_table

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # these runs are short on purpose
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # and some validate nothing
]
VIEW = WeakView(flip=True, crop_padding=2)


class Recorder(LightningModule):
    """A module that trains one parameter and records its batches."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        self.request = BatchRequest(parts)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []

    def batch_request(self) -> BatchRequest:
        return self.request

    def make_schedule(self, epoch_steps: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return self.weight * 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        indices: Tensor = batch.indices
        return indices


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(
        accelerator="cpu", logger=CSVLogger(folder, "runs"), **{"enable_checkpointing": False, **quiet, **options}
    )


def make_data(**options: Any) -> ImageDataModule:
    data = ImageDataModule(**{"num_workers": 0, **options})
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (1, 28, 28)),
        ({"channels": 3}, (3, 28, 28)),
        ({"image_size": 40}, (1, 40, 40)),
        ({"image_size": 16, "channels": 3}, (3, 16, 16)),
    ],
)
def test_shape_and_classes_are_known_before_setup(options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    data = ImageDataModule(num_labels=20, batch_size=10, num_workers=0, **options)
    assert data.splits == {}
    assert (data.num_classes, data.class_names, data.image_shape) == (10, list(FASHION), shape)
    data.setup("fit")
    (batch, *_) = data.train_dataloader()
    views = data.on_after_batch_transfer(batch, 0)
    assert views["labeled"].x.shape == (10, *shape)


@pytest.mark.parametrize(("cores", "workers"), [(3, 3), (20, 8)])
def test_files_are_read_by_a_worker_for_each_core(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_label_datamodule, "count_cores", lambda: cores)
    assert ImageDataModule().num_workers == workers
    assert ImageDataModule(num_workers=1).num_workers == 1


@pytest.mark.parametrize(("options", "shape"), [({}, (3, 224, 224)), ({"image_size": 16, "channels": 1}, (1, 16, 16))])
def test_image_shape_of_files_follows_the_settings(
    folder: MakeFolder, options: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    data = ImageDataModule(str(folder("train/a", "train/b")), num_workers=0, val_size=0, test_size=0, **options)
    assert (data.num_classes, data.class_names, data.image_shape) == (2, ["a", "b"], shape)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert data.on_after_batch_transfer(batch, 0)["labeled"].x.shape == (6, *shape)


def test_splits_of_the_sample_cover_all_images() -> None:
    data = make_data(labels_per_class=3)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 30,
        "unlabeled": 8_970,
        "val": 1_000,
        "test": 2_000,
    }
    assert data.labeled_counts().tolist() == [3] * 10


def test_views_are_made_from_the_pixels_of_their_example() -> None:
    data = make_data(num_labels=50, batch_size=25, weak_view=VIEW)
    split = data.splits["labeled"]
    for raw in data.train_dataloader():
        views = data.on_after_batch_transfer(raw, 0)["labeled"]
        rows = [split.indices[i] for i in views.indices.tolist()]
        plain = to_float(split.part.storage.data[rows], 1, None)  # type: ignore[attr-defined]
        assert isinstance(views, Labeled)
        assert torch.equal(views.x, weak(plain, VIEW, raw["labeled"].seed))
        assert not torch.equal(views.x, plain)
        assert views.y.tolist() == split.part.labels[rows].tolist()


def test_validation_and_test_images_are_not_augmented() -> None:
    data = make_data(num_labels=10, weak_view=VIEW, eval_batch_size=500)
    for loader, split in ((data.val_dataloader(), data.splits["val"]), (data.test_dataloader(), data.splits["test"])):
        assert isinstance(loader, EvalLoader)
        views = [data.on_after_batch_transfer(raw, 0) for raw in loader]
        images = split.part.storage.data[split.indices]  # type: ignore[attr-defined]
        assert torch.equal(torch.cat([view.x for view in views]), to_float(images, 1, None))
        assert torch.equal(torch.cat([view.y for view in views]), split.labels)


def test_evaluation_files_are_cropped_once(folder: MakeFolder) -> None:
    path = folder("a", "b", count=4)
    for scale in ([0.1, 0.2], None):
        data = make_data(source=str(path), val_size=0, test_size=0, image_size=8, weak_view=WeakView(crop_scale=scale))
        (raw,) = data.train_dataloader()
        x = data.on_after_batch_transfer(raw, 0)["labeled"].x
        assert torch.equal(x, raw["labeled"].inputs / 255)


def test_steps_per_epoch_default_to_the_number_of_batches() -> None:
    assert make_data(num_labels=100, batch_size=30).epoch_steps == 4
    assert make_data(num_labels=100, batch_size=33).epoch_steps == 3  # no batch of one
    data = make_data(num_labels=100, batch_size=30, steps_per_epoch=7)
    assert data.epoch_steps == len(data.train_dataloader()) == len(list(data.train_dataloader())) == 7


@pytest.mark.parametrize("parts", [("labeled",), ("unlabeled",), ("labeled", "unlabeled"), ("unlabeled", "labeled")])
def test_paradigm_gets_the_splits_it_requests_without_hidden_labels(tmp_path: Path, parts: tuple[str, ...]) -> None:
    model = Recorder(*parts)
    data = ImageDataModule(num_labels=20, batch_size=1000, num_workers=0)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, data)
    # With labels, an epoch is a pass over the unlabeled images, here in batches of 7 x 1,000.
    assert len(model.seen) == {("labeled",): 1, ("unlabeled",): 9}.get(parts, 2)  # type: ignore[arg-type]
    for batch in model.seen:
        assert set(batch) == set(parts)
        if "unlabeled" in batch:
            assert isinstance(batch["unlabeled"], Unlabeled)
        if "labeled" in batch:
            times = (
                2 if len(parts) == 1 else 100
            )  # full batches beside the unlabeled ones, the 20 labels again and again
            assert sorted(batch["labeled"].y.tolist()) == sorted([*range(10)] * times)
    raw = next(iter(data.train_dataloader()))
    assert {name: part.labels is None for name, part in raw.items()} == {name: name == "unlabeled" for name in parts}


def test_orders_and_views_are_seeded_separately_for_each_split(tmp_path: Path) -> None:
    draws: list[int | None] = []
    for seed in (0, 1):
        data = ImageDataModule(num_labels=20, seed=seed, num_workers=0)
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(Recorder("labeled", "unlabeled"), data)
        draws += [part.seed for part in next(iter(data.train_dataloader())).values()]
    assert None not in draws
    assert len(set(draws)) == 4


def test_unlabeled_source_provides_the_unlabeled_images() -> None:
    data = make_data(num_labels=10, unlabeled_source="sample-digits")
    assert len(data.splits["unlabeled"]) == 10_000
    assert data.splits["unlabeled"].ids[0] == "sample-digits:digits/0"
    assert data.splits["unlabeled"].labels.unique().tolist() == [-1]


@pytest.fixture
def small_idx(tmp_path: Path) -> Path:
    for part in ("train", "t10k"):
        images = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 6]) + bytes(range(144))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3]))
    return tmp_path


def test_unlabeled_source_of_another_shape_is_refused(small_idx: Path) -> None:
    with pytest.raises(InputError, match=re.escape("examples of shape (1, 6, 6), source 'sample' of (1, 28, 28)")):
        make_data(unlabeled_source="MNIST", root=str(small_idx))
    data = make_data(unlabeled_source="MNIST", root=str(small_idx), image_size=14, num_labels=10)
    assert len(data.splits["unlabeled"]) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"unlabeled_ratio": 0}, "unlabeled_ratio is 0"),
        ({"center_crop": 0.0}, "center_crop is 0.0"),
        ({"center_crop": 1.5}, "center_crop is 1.5"),
        ({"image_size": -1}, "image_size is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"source": "nowhere"}, "source 'nowhere' is neither"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_read(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        ImageDataModule(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_labels": 9_001}, "num_labels is 9001, but only 9000 labeled"),
        ({"labels_per_class": 901}, "class 'T-shirt/top' has only 900 labeled"),
        ({"val_size": 10_000}, "val_size asks for 10000"),
        ({"split_file": "gone.csv"}, "split_file 'gone.csv'"),
    ],
)
def test_impossible_split_sizes_are_refused_by_setup(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        make_data(**options)


@pytest.mark.parametrize(
    ("options", "part", "words"),
    [
        ({"num_labels": 0}, "labeled", "source 'sample' gives no label to train on (num_labels is 0)"),
        ({"source": "sample-digits"}, "labeled", "source 'sample-digits' gives no label to train on"),
        ({}, "unlabeled", "source 'sample' gives no unlabeled example"),
    ],
)
def test_missing_split_that_is_needed_is_named(tmp_path: Path, options: dict[str, Any], part: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        trainer(tmp_path, max_epochs=1).fit(Recorder(part), ImageDataModule(num_workers=0, **options))


def test_unlabeled_images_may_be_missing_if_they_are_not_needed(tmp_path: Path) -> None:
    model = Recorder("labeled")
    data = ImageDataModule(num_workers=0, val_size=0, batch_size=5_000)
    trainer(tmp_path, max_epochs=1).fit(model, data)
    assert len(data.splits["unlabeled"]) == len(data.splits["val"]) == 0
    assert sum(len(batch["labeled"].x) for batch in model.seen) == 10_000


def test_test_stage_without_test_images_is_refused(folder: MakeFolder, tmp_path: Path) -> None:
    data = ImageDataModule(str(folder("a", "b")), test_size=0, image_size=8, num_workers=0)
    with pytest.raises(InputError, match="has no test example"):
        trainer(tmp_path).test(Recorder(), data)


def test_evaluation_uses_each_example_once(tmp_path: Path) -> None:
    for run, name, size in (("validate", "val", 1_000), ("test", "test", 2_000)):
        model = Recorder()
        getattr(trainer(tmp_path), run)(model, ImageDataModule(eval_batch_size=300, num_workers=0), verbose=False)
        seen = torch.cat([batch.indices for batch in model.seen])
        assert seen.tolist() == list(range(size)), name


class SaveAt(Callback):
    """Save a checkpoint in the middle of an epoch, as a preempted run does."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [1, 5, 7])
def test_interrupted_run_continues_with_the_remaining_batches(tmp_path: Path, step: int) -> None:
    def run(**options: Any) -> list[Any]:
        model = Recorder("labeled", "unlabeled")
        data = ImageDataModule(num_labels=40, batch_size=8, num_workers=0, weak_view=VIEW)
        quiet = trainer(tmp_path, max_steps=12, limit_val_batches=0, callbacks=[SaveAt(tmp_path / "x.ckpt", step)])
        quiet.fit(model, data, **options)
        return model.seen

    whole = run()
    rest = run(ckpt_path=str(tmp_path / "x.ckpt"))
    assert len(rest) == 12 - step
    for one, two in zip(whole[step:], rest, strict=True):
        assert torch.equal(one["labeled"].x, two["labeled"].x)
        assert torch.equal(one["labeled"].y, two["labeled"].y)
        assert torch.equal(one["unlabeled"].weak, two["unlabeled"].weak)


def test_split_written_by_a_run_is_read_by_another(tmp_path: Path) -> None:
    first = ImageDataModule(num_labels=30, seed=5, unlabeled_source="sample-digits", num_workers=0)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(Recorder("labeled"), first)
    assert run.log_dir is not None
    written = Path(run.log_dir) / MANIFEST
    again = make_data(seed=6, split_file=str(written), unlabeled_source="sample-digits")
    assert {name: split.ids for name, split in again.splits.items()} == {
        name: split.ids for name, split in first.splits.items()
    }
    assert again.splits["labeled"].labels.tolist() == first.splits["labeled"].labels.tolist()
    with pytest.raises(InputError, match="sample-digits:digits/"):
        make_data(split_file=str(written))
    with pytest.raises(InputError, match="which the source does not have"):
        make_data(source="sample-digits", split_file=str(written))


def test_split_file_edited_into_a_leak_is_detected(folder: MakeFolder, tmp_path: Path) -> None:
    path = folder("a", "b", count=5)
    (path / "a" / "1.png").write_bytes((path / "a" / "0.png").read_bytes())
    options: dict[str, Any] = {"source": str(path), "val_size": 0, "test_size": 0, "image_size": 8}
    run = trainer(tmp_path, max_steps=1)
    run.fit(Recorder("labeled"), ImageDataModule(num_workers=0, **options))
    assert run.log_dir is not None
    written = Path(run.log_dir) / MANIFEST
    written.write_text(written.read_text().replace("a/0.png,labeled", "a/0.png,test"))
    assert "a/1.png" not in make_data(split_file=str(written), **options).splits["labeled"].ids
    with pytest.raises(InputError, match=r"'a/1.png' \(labeled\) equals 'a/0.png' \(test\)"):
        make_data(split_file=str(written), on_leak="raise", **options)


def test_split_file_edited_into_a_straddling_group_is_refused(folder: MakeFolder, tmp_path: Path) -> None:
    path = folder("a", "b", count=6)
    rows = [f"{c}/{i}.png,{c},patient{i}" for c in "ab" for i in range(6)]
    (path / "list.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    options: dict[str, Any] = {"source": str(path / "list.csv"), "val_size": 0, "test_size": 2, "image_size": 8}
    run = trainer(tmp_path, max_steps=1)
    run.fit(Recorder("labeled"), ImageDataModule(num_workers=0, **options))
    assert run.log_dir is not None
    written = Path(run.log_dir) / MANIFEST
    whole = make_data(split_file=str(written), **options).splits
    moved = whole["test"].ids[0]
    written.write_text(written.read_text().replace(f"{moved},test", f"{moved},labeled"))
    with pytest.raises(InputError, match=r"puts group 'patient\d' into test and training: keep it in one"):
        make_data(split_file=str(written), **options)


@pytest.mark.parametrize("setting", ["unlabeled_source", "predict_source"])
def test_error_of_the_unlabeled_source_names_its_setting(setting: str) -> None:
    data = ImageDataModule(num_workers=0, **{setting: "nowhere"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"^{setting} 'nowhere' is neither"):
        data.setup("predict" if setting == "predict_source" else "fit")


@pytest.fixture
def damaged(folder: MakeFolder) -> Path:
    path = folder("train/a", "train/b", "test/a", "test/b", count=6)
    (path / "train/a/0.png").write_bytes(b"")
    (path / "train/a/1.png").write_bytes((path / "train/a/1.png").read_bytes()[:60])
    (path / "train/b/2.png").write_text("this is not an image, despite its name")
    return path


def test_unreadable_images_stop_the_run_before_the_first_step(damaged: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"file '{damaged}/train/a/0.png' cannot be read: it has zero")):
        make_data(source=str(damaged))


def test_unreadable_images_are_skipped_counted_and_listed(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = break_middle(write_image(damaged / "train/b/4.png", 7, (40, 30)))
    data = ImageDataModule(str(damaged), on_bad_image="skip", image_size=8, val_size=0, num_workers=0)
    model = Recorder("labeled")
    run = trainer(tmp_path, max_epochs=1)
    with caplog.at_level("INFO"):
        run.fit(model, data)
    assert data.splits["labeled"].ids == [f"train/{i}.png" for i in ("a/2", "a/3", "a/4", "a/5")] + [
        f"train/{i}.png" for i in ("b/0", "b/1", "b/3", "b/4", "b/5")
    ]
    assert [len(batch["labeled"].x) for batch in model.seen] == [8]
    assert "3 unreadable files are skipped: " in caplog.text
    assert run.log_dir is not None
    listed = dict(line.split("\t") for line in (Path(run.log_dir) / SKIPPED).read_text().splitlines())
    assert list(listed) == sorted(
        str(damaged / "train" / name) for name in ("a/0.png", "a/1.png", "b/2.png", "b/4.png")
    )
    assert str(late) in listed
    assert all(listed.values())


def test_labels_stay_with_their_images_when_others_are_skipped(damaged: Path) -> None:
    data = make_data(source=str(damaged), on_bad_image="skip", image_size=8, val_size=0)
    split = data.splits["labeled"]
    assert [name.split("/")[1] for name in split.ids] == [data.class_names[c] for c in split.labels.tolist()]


def test_background_setting_fills_transparent_pixels(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / name / "x.png")
    for background in ((255, 255, 255), (255, 0, 51)):
        data = make_data(source=str(tmp_path), background=background, image_size=4, val_size=0, test_size=0)
        (raw,) = data.train_dataloader()
        assert raw["labeled"].inputs[0, :, 2, 2].tolist() == list(background)


def test_background_is_kept_by_the_random_crop_and_in_gray(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "a" / "x.png")
    options = {"source": str(tmp_path), "background": (100, 100, 100), "image_size": 4, "channels": 1}
    data = make_data(val_size=0, test_size=0, weak_view=WeakView(crop_scale=[0.2, 0.5]), **options)
    (raw,) = data.train_dataloader()
    assert raw["labeled"].inputs.unique().tolist() == [100]


@pytest.mark.parametrize("views", [("weak", "weak_2"), ("weak", "strong"), ("strong", "strong_2")])
def test_each_view_of_a_file_has_an_independent_crop(views: tuple[str, ...], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(8):
            write_image(tmp_path / name / f"{i}.png", i)
    options = {"source": str(tmp_path), "image_size": 16, "val_size": 0, "test_size": 0, "num_labels": 4}
    options.update(batch_size=2, unlabeled_ratio=4, num_workers=0, strong_view=StrongView(operations=0, cutout=0.01))
    model = Recorder("labeled", "unlabeled")
    model.request = replace(model.request, views=views)
    data = ImageDataModule(**options, weak_view=WeakView(crop_scale=[0.1, 0.2]), labeled_view="both")  # type: ignore[arg-type]
    trainer(tmp_path, max_epochs=1, limit_val_batches=0, limit_train_batches=1).fit(model, data)
    (batch,) = model.seen
    one, two = (getattr(batch["unlabeled"], view) for view in views)
    assert not any(torch.allclose(a, b, atol=0.02) for a, b in zip(one, two, strict=True))
    assert batch["labeled"].num_weak == 2
    mild, hard = batch["labeled"].x.split(2)
    assert not any(torch.allclose(a, b, atol=0.02) for a, b in zip(mild, hard, strict=True))


def test_predict_reads_the_test_split_or_the_named_source(folder: MakeFolder, tmp_path: Path) -> None:
    path = folder("new", count=5)
    for source, ids in ((None, [f"test/{i}" for i in range(2_000)]), (str(path), [f"new/{i}.png" for i in range(5)])):
        data = ImageDataModule(predict_source=source, eval_batch_size=3 if source else 600, num_workers=0)
        data.setup("predict")
        assert data.predict_count == len(ids)
        names = [name for batch in data.predict_dataloader() for name in batch.names or []]
        assert names == ids


def test_manifest_trains_and_predicts_end_to_end(tmp_path: Path) -> None:
    rows = [("path", "label", "group")]
    for i in range(40):
        write_image(tmp_path / f"{i}.png", i)
        rows.append((f"{i}.png", "" if i % 4 == 3 else "yx"[i % 2], f"p{i // 4}"))
    path = write_table(tmp_path / "m.csv", rows)
    model = Recorder("labeled", "unlabeled")
    data = ImageDataModule(str(path), image_size=8, batch_size=4, num_workers=0)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, data)
    groups = {name: {rows[1:][int(file.split(".")[0])][2] for file in split.ids} for name, split in data.splits.items()}
    assert groups["val"]
    assert groups["test"]
    assert not groups["val"] & groups["test"]
    assert not (groups["labeled"] | groups["unlabeled"]) & (groups["val"] | groups["test"])
    assert data.class_names == ["x", "y"]
    assert len(model.seen) == data.epoch_steps


def test_setup_does_not_depend_on_or_touch_the_global_random_state() -> None:
    lightning.seed_everything(1, verbose=False)
    before = torch.get_rng_state()
    one = make_data(num_labels=20, weak_view=VIEW)
    batches = list(one.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
    lightning.seed_everything(2, verbose=False)
    two = make_data(num_labels=20, weak_view=VIEW)
    assert one.splits["labeled"].ids == two.splits["labeled"].ids
    assert [b["labeled"].seed for b in batches] == [b["labeled"].seed for b in two.train_dataloader()]


def test_labeled_images_get_the_requested_views() -> None:
    def first(**settings: Any) -> Labeled:
        data = ImageDataModule("sample", num_labels=20, batch_size=10, weak_view=WeakView(crop_padding=3), **settings)
        data.setup("fit")
        batch: Labeled = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)["labeled"]
        return batch

    mild, hard, both = (first(labeled_view=view) for view in ("weak", "strong", "both"))
    assert torch.equal(mild.x, first().x)  # weak unless asked otherwise
    assert not torch.equal(mild.x, hard.x)
    assert torch.equal(both.x, torch.cat([mild.x, hard.x]))
    assert both.y.tolist() == mild.y.tolist() * 2 == hard.y.tolist() * 2
    assert both.indices.tolist() == mild.indices.tolist() * 2


def test_unaugmented_training_images_start_with_labeled_ones() -> None:
    def seen(most: int, seed: int = 0, labels: int = 20) -> list[bytes]:
        data = ImageDataModule("sample", num_labels=labels, seed=seed, eval_batch_size=64, num_workers=0)
        data.setup("fit")
        images = [x.numpy().tobytes() for b in data.training_batches(most, torch.device("cpu")) for x in b.x]
        own, other = (
            {p.numpy().tobytes() for b in data.batches_of(n, torch.device("cpu")) for p in b.x} for n in parts
        )
        assert all(x in own for x in images[:labels])
        assert all(x in other for x in images[labels:])
        return images

    parts = ("labeled", "unlabeled")
    few = seen(300)
    assert len(few) == 300
    assert few == seen(300)
    assert set(few[20:]) != set(seen(300, seed=1)[20:])
    assert len(seen(15)) == 15
    assert len(seen(20_000)) == 9000
