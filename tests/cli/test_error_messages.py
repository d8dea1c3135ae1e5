"""A wrong word gets the nearest right one, whichever command, option, class, file or key of a YAML it was meant for."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CONFIGS

FIT = "fit --config configs/quickstart/fine_tune.yaml "
SEMI = "fit --config configs/semi_supervised/shared.yaml --config configs/semi_supervised/fixmatch.yaml "
RANK = "rank --config configs/reuse/rank.yaml "
STUDY = "study --config study.yaml "
STUDY_YAML = """
name: mine
budgets: [40]
seeds: [0]
methods:
  labels_only:
    - {config: [configs/quickstart/fine_tune.yaml]}
  ae:
    - {name: pre, config: [configs/quickstart/autoencoder.yaml]}
    - {config: [configs/quickstart/fine_tune.yaml], weights: pre, options: {model.init_args.backbone_lr_scale: 0.1}}
"""


@pytest.fixture
def checkout(workdir: Path) -> Path:
    shutil.copytree(CONFIGS, "configs")
    return workdir


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tset x", "'tset' is not a command (did you mean 'test'?)"),
        ("--config configs/x.yaml fit", "'--config' stands before the command: give 'sft-lightning fit --config ...'"),
        ("fit configs/x.yaml", "'configs/x.yaml' stands alone: give it as --config configs/x.yaml"),
        ("fit -c a.yaml stray", "'stray' is one word too many: give sft-lightning fit [options], such as 'sft-light"),
        ("lineage a b", "'b' is one word too many: give sft-lightning lineage RUN [options]"),
        ("test a --ckpt_path b", "test is given both 'a' and --ckpt_path: give one of them"),
        ("export", "export needs RUN: give sft-lightning export RUN [options], such as 'sft-lightning export lightnin"),
        ("study", "study needs --name, --budgets, --seeds, --methods: give sft-lightning study [options]"),
        # options
        (f"{FIT}--trainer.max_epoch 3", "no option --trainer.max_epoch (did you mean --trainer.max_epochs?)"),
        (f"{FIT}--trainer.max_epoch=3", "no option --trainer.max_epoch (did you mean --trainer.max_epochs?)"),
        (
            f"{FIT}--trainer.callback+=EarlyStopping",
            "no option --trainer.callback+ (did you mean --trainer.callbacks?)",
        ),
        (f"{FIT}--ckpt_pth x", "no option --ckpt_pth (did you mean --ckpt_path?); 'sft-lightning fit --help' lists"),
        (f"{FIT}--run_nam x", "(did you mean --run_name?)"),
        (f"{FIT}--num_labels 3", "no option --num_labels (did you mean --data.init_args.num_labels?)"),
        (f"{FIT}--max_epochs 3", "(did you mean --trainer.max_epochs?)"),
        (f"{FIT}--lr 1", "(did you mean --model.init_args.optimizer.init_args.lr?)"),
        (
            f"{FIT}--data.init_args.weak_view.crop_scale null",
            "data.weak_view.crop_scale is null: write it as a mapping, --data.weak_view '{crop_scale: null}', or in",
        ),
        (f"{FIT}--verbose", "there is no option --verbose; 'sft-lightning fit --help' lists all"),
        (f"{FIT}--model.init_arg.backbone mlp", "(did you mean --model.init_args.backbone?)"),
        (f"{FIT}--modle.init_args.backbone mlp", "(did you mean --model.init_args.backbone?)"),
        (f"{FIT}--data.init_args.weak_view.flp true", "(did you mean --data.init_args.weak_view.flip?)"),
        (
            f"{FIT}--model.init_args.lamda_u 1",
            "no option 'lamda_u' (did you mean 'lambda_u' of SemiSupervisedDetector or SemiSupervisedModule?)",
        ),
        (f"{FIT}--model.init_args.feature_loss x", "'feature_loss', which is one of DecoupledFeatureClassifier"),
        (
            f"{SEMI}--model.init_args.lamda_u 1",
            "SemiSupervisedModule has no option 'lamda_u' (did you mean 'lambda_u'?)",
        ),
        (
            f"{FIT}--data.init_args.num_label 3",
            "ImageDataModule has no option 'num_label' (did you mean 'num_labels'?)",
        ),
        (f"{FIT}--model.init_args.optimizer.init_args.lrr 1", "Adam has no option 'lrr' (did you mean 'lr'?)"),
        ("fit --confg configs/quickstart/fine_tune.yaml", "(did you mean --config?)"),
        ("test --ckpt x", "no option --ckpt (did you mean --ckpt_path?); 'sft-lightning test --help' lists all"),
        ("predict --batchsize 3", "(did you mean --data.init_args.batch_size?)"),
        ("export x --par backbone", "no option --par (did you mean --part?); 'sft-lightning export --help' lists all"),
        ("report x --labl_next 3", "(did you mean --label_next?)"),
        ("rank --candidate resnet18", "no option --candidate (did you mean --candidates?)"),
        (f"{RANK}--fold 3", "no option --fold (did you mean --folds?)"),
        ("rank --data.init_args.sorce x", "ImageDataModule has no option 'sorce' (did you mean 'source'?)"),
        (f"{STUDY}--budget [1]", "no option --budget (did you mean --budgets?)"),
        (
            "degree --config configs/quickstart/fine_tune.yaml --fold 3",
            "(did you mean --degree.folds?); 'sft-lightning d",
        ),
        ("preview --config configs/quickstart/fine_tune.yaml --run_nam x", "'sft-lightning preview --help' lists all"),
        (
            "find-lr --config configs/quickstart/fine_tune.yaml --min_l 1",
            "(did you mean --min_lr?); 'sft-lightning find-l",
        ),
        ("completion --shel bash", "(did you mean --shell?)"),
        # choices, types and names
        ("completion fsh", "shell is 'fsh' (did you mean 'zsh'"),
        ("export x --part bakbone", "part is 'bakbone' (did you mean 'backbone'?): give backbone, head or model"),
        (f"{RANK}--by logm", "by is 'logm' (did you mean 'logme'?): give linear, knn, logme"),
        (f"{STUDY}--judge bst", "judge is 'bst' (did you mean 'best'?): give last or best"),
        (f"{FIT}--data.init_args.on_leak drp", "data.on_leak is 'drp' (did you mean 'drop'?): give drop or raise"),
        (f"{FIT}--trainer.precision bf16-mixd", "trainer.precision is 'bf16-mixd' (did you mean 'bf16-mixed'?): give "),
        (
            f"{FIT}--trainer.deterministic wran",
            "trainer.deterministic is 'wran' (did you mean 'warn'?): give warn, true",
        ),
        (f"{FIT}--trainer.strategy dpp", "trainer.strategy is 'dpp' (did you mean 'ddp'"),
        (f"{FIT}--trainer.max_epochs three", "trainer.max_epochs is 'three': give a whole number"),
        (f"{FIT}--data.init_args.source MNST", "(did you mean 'MNIST'"),
        (f"{FIT}--model.init_args.backbone torchvison/resnet50", "unknown (did you mean 'torchvision/resnet50'"),
        (f"{FIT}--model.init_args.backbone timm/resnet5", "(did you mean 'timm/resnet50'"),
        # classes
        (f"{FIT}--model FineTuneClasifier", "(did you mean 'FineTuneClassifier'?)"),
        (f"{FIT}--data ImageDataModul", "class 'ImageDataModul' is unknown (did you mean 'ImageDataModule'?)"),
        (f"{FIT}--model.init_args.optimizer torch.optim.Adamm", "(did you mean 'torch.optim.Adam'"),
        (f"{FIT}--model.init_args.optimizer SDG", "class 'SDG' is unknown (did you mean 'torch.optim.SGD'"),
        (f"{FIT}--model.init_args.lr_scheduler WarmupCosin", "(did you mean 'WarmupCosine'?)"),
        (f"{FIT}--model.init_args.regularizer L2PS", "class 'L2PS' is unknown (did you mean 'L2SP'"),
        (
            f"{FIT}--model.init_args.regularizer FixMatch",
            "class 'FixMatch' does not fit regularizer: give BSS, DELTA, L2 or L2SP",
        ),
        (f"{FIT}--trainer.callbacks EarlyStoping", "(did you mean 'lightning.pytorch.callbacks.EarlyStopping'?)"),
        (f"{SEMI}--model.init_args.strategy FixMach", "(did you mean 'FixMatch'"),
        # files
        (
            "fit -c configs/quickstart/fine_tun.yaml",
            "'configs/quickstart/fine_tun.yaml' does not exist (did you mean 'con",
        ),
        ("fit -c configs/quikstart/fine_tune.yaml", "(did you mean 'configs/quickstart'"),
        ("preview -c configs/quickstart/fine_tun.yaml", "(did you mean 'configs/quickstart/fine_tune.yaml'?)"),
        (f"{FIT}--data configs/data/sample_100_label.yaml", "(did you mean 'configs/data/sample_100_labels.yaml'?)"),
    ],
)
def test_words(words: str, expected: str, checkout: Path, cli_error: Callable[..., str]) -> None:
    Path("study.yaml").write_text(STUDY_YAML)
    Path("x").touch()  # stands for a checkpoint
    assert expected in cli_error(*shlex.split(words))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("model:", "modle:", "there is no option 'modle' (did you mean 'model'?)"),
        ("data:", "dta:", "there is no option 'dta' (did you mean 'data'?)"),
        (
            "init_args:",
            "init_arg:",
            "model has no entry 'init_arg' (did you mean 'init_args'?): give class_path and init_",
        ),
        ("class_path: F", "clas_path: F", "model has no entry 'clas_path' (did you mean 'class_path'?)"),
        ("max_epochs", "max_epoch", "Trainer has no option 'max_epoch' (did you mean 'max_epochs'?)"),
        (
            "torch.optim.Adam",
            "torch.optim.Adamm",
            "class 'torch.optim.Adamm' is unknown (did you mean 'torch.optim.Adam'",
        ),
        (
            "run_name:",
            "run_nam:",
            "there is no option 'run_nam' (did you mean 'run_name'?); 'sft-lightning fit --help'",
        ),
    ],
)
def test_keys_of_a_config(old: str, new: str, expected: str, checkout: Path, cli_error: Callable[..., str]) -> None:
    text = Path("configs/quickstart/fine_tune.yaml").read_text()
    assert old in text
    Path("my.yaml").write_text(text.replace(old, new, 1))
    assert expected in cli_error("fit", "--config", "my.yaml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("options:", "option:", "Stage has no option 'option' (did you mean 'options'?)"),
        ("weights:", "weight:", "Stage has no option 'weight' (did you mean 'weights'?)"),
        (
            "config: [configs/quickstart/a",
            "confg: [configs/quickstart/a",
            "Stage has no option 'confg' (did you mean 'config'?)",
        ),
        ("weights: pre", "weights: per", "starts stage 'tune' from 'per' (did you mean 'pre'?)"),
        ("labels_only:", "label_only:", "baseline 'labels_only' is not among the methods (did you mean 'label_only'?)"),
        ("budgets:", "budget:", "there is no option 'budget' (did you mean 'budgets'?)"),
        ("methods:", "method:", "there is no option 'method' (did you mean 'methods'?)"),
        ("[40]", "forty", "budgets is 'forty': give a list such as [forty]"),
        ("[40]", "{forty: 40}", "give a list such as [1, 2]"),
        (
            "autoencoder.yaml",
            "autoencder.yaml",
            "methods.config 'configs/quickstart/autoencder.yaml' does not exist (did",
        ),
    ],
)
def test_keys_of_a_study(old: str, new: str, expected: str, checkout: Path, cli_error: Callable[..., str]) -> None:
    assert old in STUDY_YAML
    Path("study.yaml").write_text(STUDY_YAML.replace(old, new, 1))
    assert expected in cli_error("study", "--config", "study.yaml")
