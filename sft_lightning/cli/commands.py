"""The commands: their names, sentences and examples stand here and nowhere else. Nothing heavy is imported.

A new command is one entry of `COMMANDS` and the function that it names. The function's parameters become options, its
docstring their help (Google style, typed); it returns what is printed: text, or the path that it wrote. Where
`takes_fit` is set, it is given the words of the command line instead and hands them to `cli.run` with a subclass of
`cli.Built` whose `command` is its name. A mistake of the user is an `InputError` (exit code 2); a result that scripts
shall stop at is a `Found` (exit code 1).
"""

from itertools import groupby
from typing import NamedTuple

from sft_lightning._version import __version__

FINE_TUNE = "configs/quickstart/fine_tune.yaml"
RUN = "lightning_logs/quickstart/fine_tune/version_0"  # what `fit` makes of it


class Command(NamedTuple):
    """What is known of a command before it is imported.

    Attributes:
        group: Of the general help.
        does: A sentence.
        examples: Words after `sft-lightning`; each can be pasted, in this order, in a checkout.
        function: `package.module:name` of what does it; empty for the four of Lightning.
        takes_fit: Whether it takes the settings of `fit`.
        words: Options that may stand without their names, by what the help calls them, in order.
        beside: Names of the files that are written beside the one that is returned, with `{stem}` for its name without
            `.safetensors`.
        needs_torch: Whether it imports torch, which takes seconds.
    """

    group: str
    does: str
    examples: tuple[str, ...]
    function: str = ""
    takes_fit: bool = False
    words: dict[str, str] = {}  # noqa: RUF012 - never changed
    beside: tuple[str, ...] = ()
    needs_torch: bool = True


COMMANDS = {
    "fit": Command(
        "train and use",
        "Trains a model: pre-trains without labels, fine-tunes on few, or learns from both.",
        (
            f"fit --config {FINE_TUNE}",
            f"fit --config {FINE_TUNE} --data.init_args.source my_images/ --data.init_args.num_labels null "
            "--data.init_args.image_size 64 --run_name mine",
            "fit --model.help SemiSupervisedModule",
        ),
        takes_fit=True,
    ),
    "test": Command(
        "train and use",
        "Measures a trained model on the test split.",
        (f"test {RUN}",),
        takes_fit=True,
        words={"RUN": "ckpt_path"},
    ),
    "predict": Command(
        "train and use",
        "Writes the class and probabilities of each image to predictions.csv.",
        (f"predict {RUN} my_images/", f"predict {RUN}"),
        takes_fit=True,
        words={"RUN": "ckpt_path", "IMAGES": "data.init_args.predict_source"},
    ),
    "report": Command(
        "train and use",
        "Writes what a run came to as one page: mistakes, calibration, what to label next.",
        (f"report {RUN}",),
        "sft_lightning.report.report:report",
        words={"RUN": "run"},
    ),
    "preview": Command(
        "before a training",
        "Draws training images beside their weak and strong views.",
        ("preview --config configs/semi_supervised/shared.yaml --config configs/semi_supervised/fixmatch.yaml",),
        "sft_lightning.report.preview:preview",
        takes_fit=True,
    ),
    "audit": Command(
        "before a training",
        "Finds leaks, duplicates, broken files and wrong labels; with --strict, exit code 1 where the test leaks.",
        (f"audit --config {FINE_TUNE}",),
        "sft_lightning.audit.audit:audit",
        takes_fit=True,
    ),
    "find-lr": Command(
        "before a training",
        "Tries rising learning rates for some steps and suggests one.",
        (f"find-lr --config {FINE_TUNE}", f"find-lr --config {FINE_TUNE} --min_lr 1e-5 --max_lr 1 --steps 200"),
        "sft_lightning.tuning.find_lr:find_lr",
        takes_fit=True,
    ),
    "find-batch-size": Command(
        "before a training",
        "Measures images a second by batch size until memory runs out, and suggests one.",
        (f"find-batch-size --config {FINE_TUNE}", f"find-batch-size --config {FINE_TUNE} --max 64 --seconds 3"),
        "sft_lightning.tuning.find_batch_size:find_batch_size",
        takes_fit=True,
    ),
    "find-precision": Command(
        "before a training",
        "Measures whether half precision is faster on this machine.",
        (f"find-precision --config {FINE_TUNE}", f"find-precision --config {FINE_TUNE} --rounds 5 --seconds 5"),
        "sft_lightning.tuning.find_precision:find_precision",
        takes_fit=True,
    ),
    "study": Command(
        "compare",
        "Compares methods over label budgets and seeds: did the unlabeled images help?",
        ("study --config configs/study/quickstart.yaml --jobs 2",),
        "sft_lightning.study.study:study",
    ),
    "rank": Command(
        "compare",
        "Compares backbones and past runs as starts for your labels, without training them.",
        (
            "rank --config configs/reuse/rank.yaml",
            "rank --config configs/reuse/rank.yaml --candidates+=lightning_logs --by linear",
        ),
        "sft_lightning.transfer.rank:rank",
    ),
    "degree": Command(
        "compare",
        "Finds by cross-validation how far to fine-tune.",
        (f"degree --config {FINE_TUNE} --config configs/reuse/degree.yaml",),
        "sft_lightning.tuning.degree:compare_degrees",
        takes_fit=True,
    ),
    "validate": Command(
        "afterwards",
        "Measures a trained model on the validation split.",
        (f"validate {RUN}",),
        takes_fit=True,
        words={"RUN": "ckpt_path"},
    ),
    "export": Command(
        "afterwards",
        "Writes a trained model or a part of it as a file of its own: safetensors, ONNX or pt2.",
        (f"export {RUN}", f"export {RUN} --part backbone --format pt2"),
        "sft_lightning.export.export:export",
        words={"RUN": "run"},
        beside=("{stem}.json", "model_card.md"),
    ),
    "lineage": Command(
        "afterwards",
        "Tells what a run started from, back to the first source.",
        (f"lineage {RUN}",),
        "sft_lightning.runs.lineage:show_lineage",
        words={"RUN": "run"},
        needs_torch=False,
    ),
    "repeat": Command(
        "afterwards",
        "Trains a run again and says whether it comes to the same bit for bit; exit code 1 if not.",
        (f"repeat {RUN}",),
        "sft_lightning.cli.reproduce:repeat",
        words={"RUN": "run"},
    ),
    "configs": Command(
        "shell",
        "Lists the configs that come with the package, or copies one to edit.",
        ("configs", "configs copy quickstart/fine_tune.yaml --to my_training.yaml"),
        "sft_lightning.cli.shipped_configs:configs",
        words={"ACTION": "action", "NAME": "name"},
        needs_torch=False,
    ),
    "completion": Command(
        "shell",
        "Prints a script that completes commands, options and files at the TAB key.",
        (
            "completion bash > ~/.sft-lightning.bash; echo 'source ~/.sft-lightning.bash' >> ~/.bashrc",
            "completion zsh > ~/.sft-lightning.zsh; "
            "echo 'autoload -U compinit; compinit; eval \"$(<~/.sft-lightning.zsh)\"' >> ~/.zshrc",
        ),
        "sft_lightning.cli.completion:make_completion",
        words={"SHELL": "shell"},
    ),
}


def format_usage(name: str) -> str:
    """How a command is called.

    Args:
        name: Of the command.
    """
    return " ".join(["sft-lightning", name, *COMMANDS[name].words, "[options]"])


def format_command_help(name: str) -> str:
    """How the help of a command begins.

    Args:
        name: Of the command.
    """
    command = COMMANDS[name]
    told = [f"usage: {format_usage(name)}", "", command.does]
    if command.takes_fit and name != "fit":
        told.append("It takes the settings of fit, too.")
    told += [f"{what} is short for --{option}." for what, option in command.words.items()]
    told += ["", "examples:", *(f"  sft-lightning {example}" for example in command.examples)]
    return "\n".join(told) + "\n\n"


def explain_unknown_option(shown: str, hint: str, name: str) -> str:
    """The sentence about an option that a command does not have.

    Args:
        shown: The option, as the user gave it.
        hint: What may be meant, or empty.
        name: Of the command.
    """
    return f"there is no option {shown}{hint}; 'sft-lightning {name} --help' lists all"


def explain_missing(name: str, what: str) -> str:
    """The sentence about what a command was not given.

    Args:
        name: Of the command.
        what: Options or words.
    """
    return f"{name} needs {what}: give {format_usage(name)}, such as 'sft-lightning {COMMANDS[name].examples[0]}'"


def format_help() -> str:
    """The general help."""
    told = ["usage: sft-lightning COMMAND [options]", ""]
    told += [f"Learn from few labels and many unlabeled images (version {__version__}).", ""]
    for group, names in groupby(COMMANDS, lambda name: COMMANDS[name].group):
        told += [f"{group}:", *(f"  {name:<17}{COMMANDS[name].does}" for name in names), ""]
    shown = [COMMANDS[name].examples[0] for name in ("fit", "test", "predict", "report")]
    told += ["examples:", *(f"  sft-lightning {example}" for example in shown), ""]
    return "\n".join([*told, "'sft-lightning COMMAND --help' lists the options of a command.", ""])
