"""Every shipped strategy on texts: it runs, or says why not before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from sft_lightning import SemiSupervisedModule
from sft_lightning.losses.unlabeled import VirtualAdversarial
from sft_lightning.losses.unlabeled.base import StrategyContext
from sft_lightning.networks.build import build_encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec
from tests.conftest import CONFIGS
from tests.modality.test_texts import make_texts, run

CONFIG_NAMES = sorted(path.stem for path in (CONFIGS / "semi_supervised").glob("*.yaml") if path.stem != "shared")
REFUSED = {"reconstruction": "strategy Reconstruction computes with the numbers of inputs, and those of a text are"}


@pytest.fixture
def table(workdir: Path) -> Path:
    Path("texts.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in make_texts(90)))
    return Path("texts.csv")


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_a_strategy_runs_or_says_why_not(name: str, table: Path, cli_error: Callable[..., str]) -> None:
    settings = yaml.safe_load((CONFIGS / "semi_supervised" / f"{name}.yaml").read_text())
    model, data = settings["model"]["init_args"], settings.get("data", {}).get("init_args", {})
    model |= {"backbone": "fasttext", "warmup_steps": 0, "ramp_steps": 0}
    model["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    data = {name: value for name, value in data.items() if name == "labeled_view"}
    data |= {"source": str(table), "num_labels": 12, "batch_size": 6, "unlabeled_ratio": 2, "tokenizer": "words:500"}
    config = {
        "model": {"class_path": settings["model"].get("class_path", "SemiSupervisedModule"), "init_args": model},
        "data": {"class_path": "TextDataModule", "init_args": data},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0},
    }
    if name == "self_distillation":  # of a teacher, which is any run on the same classes
        frozen = ["--model=FrozenFeatureClassifier", "--model.backbone=bag_of_words", "--data=TextDataModule"]
        words = [f"--data.{setting}={data[setting]}" for setting in ("source", "num_labels", "tokenizer")]
        run("fit", "--run_name=teacher", *frozen, *words, "--trainer.accelerator=cpu")
        model["strategy"]["init_args"]["weights"] = "lightning_logs/teacher/version_0"
    Path("run.yaml").write_text(yaml.safe_dump(config))
    if name in REFUSED:
        assert REFUSED[name] in cli_error("fit", "--config=run.yaml")
        return
    run("fit", "--config=run.yaml", "--run_name=run")
    state = torch.load("lightning_logs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in state["state_dict"].values() if tensor.is_floating_point())


SPEC = InputSpec("text", (12,), "int64", "words:100")
TEXTS = {
    "input_ids": torch.tensor([[5, 9, 12, 40, 7], [8, 3, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
}


@pytest.mark.parametrize("backbone", ["small_transformer", "fasttext"])
def test_the_worst_change_of_embeddings_is_found(backbone: str) -> None:
    torch.manual_seed(0)
    strategy = VirtualAdversarial(epsilon=0.5, steps=3)
    module = SemiSupervisedModule(strategy, backbone=backbone, num_classes=3, input_spec=SPEC, ema_decay=0)
    torch.nn.init.normal_(module.head.weight)
    module.eval().double()
    direction = strategy.find_direction(module, TEXTS, 1)
    assert direction.shape == (2, 5, 128)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(2))
    assert not bool(direction[1, 2:].any())  # padding
    clean = module.outputs(TEXTS).logits.log_softmax(1)

    def measure(change: torch.Tensor) -> torch.Tensor:
        logits = module.outputs(module.backbone.perturb(TEXTS, 0.5 * change)).logits
        return (clean.exp() * (clean - logits.log_softmax(1))).sum(1)

    mask = TEXTS["attention_mask"][:, :, None]
    others = [torch.randn(2, 5, 128) * mask for _ in range(20)]
    worst = measure(direction)
    assert all(bool((worst > measure(other / other.flatten(1).norm(dim=1)[:, None, None])).all()) for other in others)
    torch.testing.assert_close(measure(0 * direction), torch.zeros(2, dtype=torch.float64))
    encoder: Any = module.backbone
    table = encoder.embedding
    with torch.no_grad():  # larger embeddings do not make a change smaller
        table.weight.mul_(10)
    change = encoder.perturb(TEXTS, direction)["change"]
    torch.testing.assert_close(change / table.weight.std().float(), direction)


def test_counts_of_words_cannot_be_changed_a_little() -> None:
    counts, _ = build_encoder("bag_of_words", SPEC)
    with pytest.raises(InputError, match="backbone 'bag_of_words' has no embeddings"):
        VirtualAdversarial().build(StrategyContext(3, 4096, counts))
