"""Strategies whose targets are computed for the whole pool: what the targets are, when they change, who teaches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from sft_lightning import ImageDataModule, SemiSupervisedModule
from sft_lightning.classifiers import LabelSpreading
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.cli.lightning_cli import run
from sft_lightning.losses.unlabeled import LabelPropagation, SelfDistillation
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json
from tests.paradigms.helpers import Recorder, classifier, sample, teacher, trainer

FEW: dict[str, Any] = {"num_labels": 20, "val_size": 9800, "batch_size": 4, "unlabeled_ratio": 2, "steps_per_epoch": 3}


def module(strategy: Any, **settings: Any) -> SemiSupervisedModule:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"backbone": "mlp", "num_classes": 10, "input_spec": (1, 28, 28), "ema_decay": 0.9}
    fixed |= {"warmup_steps": 0, "ramp_steps": 0}
    return SemiSupervisedModule(strategy, **{**fixed, "optimizer": lambda p: torch.optim.SGD(p, 0.05), **settings})


class Targets(Callback):
    """Keeps the targets of each epoch."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(pl_module.strategy._targets.clone())


def features(model: SemiSupervisedModule, data: ImageDataModule, name: str) -> torch.Tensor:
    with torch.no_grad():
        model.eval()
        made = torch.cat([model.features(batch.x) for batch in data.batches_of(name, torch.device("cpu"))])
    model.train()
    return made


@pytest.mark.parametrize("most", [60_000, 100])
def test_labels_spread_over_the_features_of_the_start(most: int) -> None:
    data, seen = sample(**FEW), Targets()
    data.setup("fit")
    model = module(LabelPropagation(components=8, max_examples=most))
    x, pool, y = features(model, data, "labeled"), features(model, data, "unlabeled"), data.splits["labeled"].labels
    assert len(pool) == 180
    trainer([seen], limit_val_batches=0).fit(model, data)
    components = WhitenedPCA(8).fit([torch.cat([x, pool])])
    x, pool = components.transform(x), components.transform(pool)
    step = 1 if most > 180 else 2
    graph = LabelSpreading(min(15, max(3, (20 + len(pool[::step])) // 40)), metric="cosine")
    graph.fit(x, y, pool[::step], 10)
    expected = graph.predict_proba(pool)
    expected[::step] = graph.unlabeled_proba
    squared = expected.square()
    assert torch.allclose(seen.seen[0].float(), squared / squared.sum(1, keepdim=True), atol=2e-3)


def test_targets_are_computed_anew_only_where_they_are_due(tmp_path: Path) -> None:
    def fit(refresh: int, epochs: int, start: Path | None = None) -> tuple[list[torch.Tensor], SemiSupervisedModule]:
        seen, model = Targets(), module(LabelPropagation(refresh, components=8))
        learner = trainer([seen], max_epochs=epochs, limit_val_batches=0)
        learner.fit(model, sample(**FEW), ckpt_path=start)
        learner.save_checkpoint(tmp_path / f"{refresh}_{epochs}.ckpt")
        return seen.seen, model

    kept, _ = fit(0, 3)
    assert torch.equal(kept[0], kept[2])
    fresh, model = fit(2, 4)
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[1], fresh[2])
    assert torch.equal(fresh[2], fresh[3])
    fit(2, 3)  # ends inside a round
    resumed, again = fit(2, 4, tmp_path / "2_3.ckpt")
    assert torch.equal(resumed[-1], fresh[3])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_one_class_alone_cannot_spread() -> None:
    data = sample(**FEW)
    data.setup("fit")
    labels = data.splits["labeled"].part.labels
    labels[data.splits["labeled"].indices] = 3
    with pytest.raises(InputError, match="LabelPropagation cannot start: 20 labeled examples of 1 class"):
        trainer().fit(module(LabelPropagation()), data)


def test_answers_of_the_teacher_are_matched_by_name() -> None:
    data, seen, batches = sample(**FEW), Targets(), Recorder()
    names = [*reversed(sample(**FEW).class_names)]
    data = sample(**FEW, class_names=names)
    model = module(SelfDistillation(str(teacher()), temperature=2.0), class_names=names)
    trainer([seen, batches], limit_val_batches=0).fit(model, data)
    known = torch.load(teacher(), weights_only=True)["state_dict"]
    expert = classifier()
    expert.load_state_dict(known)
    expert.eval()
    with torch.no_grad():
        logits = torch.cat([expert(batch.x) for batch in data.batches_of("unlabeled", torch.device("cpu"))])
    expected = (logits / 2).softmax(1).flip(1)
    assert torch.allclose(seen.seen[0].float(), expected, atol=1e-3)
    batch = batches.batches[0]["unlabeled"]
    torch.manual_seed(0)
    first = module(SelfDistillation(str(teacher()), temperature=2.0), class_names=names)
    labeled = batches.batches[0]["labeled"]
    first.train()
    both = first.outputs(torch.cat([labeled.x, batch.strong])).logits
    l_u = F.cross_entropy(both[len(labeled.x) :], seen.seen[0][batch.indices].float())
    expected_loss = F.cross_entropy(both[: len(labeled.x)], labeled.y) + l_u
    assert batches.losses[0] == pytest.approx(expected_loss.item(), rel=1e-5)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wider = sample(**FEW, image_size=32)
    with pytest.raises(InputError, match=r"takes inputs of shape \(1, 28, 28\), and the data gives \(1, 32, 32\)"):
        trainer().fit(module(SelfDistillation(str(teacher())), input_spec=(1, 32, 32)), wider)
    content = torch.load(teacher(), weights_only=True)
    content["hyper_parameters"]["class_names"] = ["boat", *content["hyper_parameters"]["class_names"][1:]]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="does not know"):
        trainer().fit(module(SelfDistillation(str(tmp_path / "other.ckpt"))), sample(**FEW))
    with pytest.raises(InputError, match="does not exist"):
        trainer().fit(module(SelfDistillation("nowhere")), sample(**FEW))


def test_the_run_names_its_teacher_and_learns_no_held_out_label(workdir: Path) -> None:
    common = ["--data=ImageDataModule", "--data.source=sample", "--data.num_labels=20", "--data.val_size=40"]
    common += ["--data.num_workers=0", "--trainer.max_epochs=1", "--data.steps_per_epoch=2"]
    optimizer = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.01"]
    run(["fit", "--model=FineTuneClassifier", "--model.backbone=mlp", *optimizer, *common, "--run_name=teacher"])
    path = "lightning_logs/teacher/version_0"
    student = ["--model=SemiSupervisedModule", "--model.backbone=mlp", "--model.strategy=SelfDistillation", *optimizer]
    words = ["fit", *student, f"--model.strategy.weights={path}", *common, "--run_name=student"]
    run([*words, "--data.seed=1"])
    folder = workdir / "lightning_logs" / "student" / "version_0"
    (link,) = [link for link in read_json(folder / "lineage.json", "") if "teacher" in link]
    assert link["teacher"] == f"{path}/checkpoints/last.ckpt"
    ids = {line.split(",")[0] for line in (workdir / path / "split.csv").read_text().splitlines() if ",labeled" in line}
    held = {
        line.split(",")[0]
        for line in (folder / "split.csv").read_text().splitlines()
        if ",test" in line or ",val" in line
    }
    assert ids
    assert held
    assert not ids & held
