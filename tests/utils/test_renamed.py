import sys
from pathlib import Path

import pytest

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning.losses.features import FeatureLoss
from sft_lightning.losses.regularizers.base import ActivationRegularizer, Regularizer
from sft_lightning.losses.unlabeled import Strategy
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS


@pytest.mark.parametrize(
    ("base", "old", "new"),
    [
        (Strategy, "own_supervised", "computes_supervised_loss"),
        (FixMatch, "told", "log_metrics"),
        (Regularizer, "watches", "needs_activations"),
        (Regularizer, "watching", "capture"),
        (ActivationRegularizer, "watched", "select_modules"),
        (ActivationRegularizer, "of_pass", "penalize_pass"),
        (FeatureLoss, "separates", "separates_classes"),
        (FineTuneClassifier, "batch_schedule", "make_schedule"),
    ],
)
def test_a_former_name_of_a_hook_is_refused(base: type, old: str, new: str) -> None:
    with pytest.raises(InputError, match=rf"\.Own defines {old}, which is now called {new}: rename it"):
        type("Own", (base,), {old: None})


def test_a_strategy_with_a_former_hook_is_one_sentence(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "mine_old.py").write_text(
        "from sft_lightning.losses.unlabeled.fixmatch import FixMatch\n\n\n"
        "class Mine(FixMatch):\n    def told(self):\n        return {}\n"
    )
    monkeypatch.syspath_prepend(str(workdir))
    argv = ["fit", "--config", str(CONFIGS / "semi_supervised" / "shared.yaml")]
    assert main([*argv, "--model.init_args.strategy=mine_old.Mine", "--trainer.fast_dev_run=true"]) == 2
    sys.modules.pop("mine_old", None)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sft-lightning: ")]
    assert "mine_old.Mine defines told, which is now called log_metrics: rename it" in line
