"""The commands with their sentences and examples, in this one place. Nothing heavy is imported.

A new command is one entry of `COMMANDS` and the function that it names. The function's parameters become options, its
docstring their help (Google style, typed); it returns what to print: text, or the path that it wrote. Where
`takes_fit` is set, it gets the arguments of the command line instead and passes them to `cli.run` with a subclass of
`cli.DryRunCLI` whose `command` is its name. A mistake of the user is an `InputError` (exit code 2); a result that
should stop a script is an `IssuesFound` (exit code 1).
"""

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from sft_lightning._version import __version__

FINE_TUNE = "configs/quickstart/fine_tune.yaml"
RUN = "lightning_logs/quickstart/fine_tune/version_0"  # the run that `fit` makes of it


class Command(NamedTuple):
    """A command, as far as it is known before its import.

    Attributes:
        group: Heading in the general help.
        does: Sentence that says what the command does.
        examples: Arguments after `sft-lightning`; each example can be pasted, in this order, in a checkout.
        function: `package.module:name` of its function; empty for Lightning's four commands.
        takes_fit: Whether it takes the settings of `fit`.
        words: Options that may be given without their names, in order, by their names in the help.
        beside: Names of the files that it writes beside the one that it returns, with `{stem}` for its name without
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
        "Trains a model: pre-trains without labels, fine-tunes on few labels, or learns from both.",
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
        "Writes the class and probabilities of each example to predictions.csv.",
        (f"predict {RUN} my_images/", f"predict {RUN}"),
        takes_fit=True,
        words={"RUN": "ckpt_path", "DATA": "data.init_args.predict_source"},
    ),
    "solve": Command(
        "train and use",
        "Compares methods on your labels, trains the best, says whether unlabeled examples helped and what to label.",
        ("solve sample --num_labels 40 --minutes 1", "solve my_images/ --minutes 30 --name mine"),
        "sft_lightning.solver.solve:solve",
        words={"SOURCE": "source"},
    ),
    "report": Command(
        "train and use",
        "Writes the results of a run as one page: mistakes, calibration, what to label next.",
        (f"report {RUN}",),
        "sft_lightning.report.report:report",
        words={"RUN": "run"},
    ),
    "preview": Command(
        "before training",
        "Draws training examples beside their weak and strong views.",
        ("preview --config configs/semi_supervised/shared.yaml --config configs/semi_supervised/fixmatch.yaml",),
        "sft_lightning.report.preview:preview",
        takes_fit=True,
    ),
    "audit": Command(
        "before training",
        "Finds leaks, duplicates, broken files and wrong labels; with --strict, exits with 1 if the test set leaks.",
        (f"audit --config {FINE_TUNE}",),
        "sft_lightning.audit.audit:audit",
        takes_fit=True,
    ),
    "select": Command(
        "before training",
        "Chooses which unlabeled examples to label first, typical and diverse ones, and shows them on a page.",
        ("select sample --num_labels 20 --hide_labels true", f"select my_images/ --start {RUN} --hide_labels true"),
        "sft_lightning.selection.select:select",
        words={"SOURCE": "source"},
    ),
    "label": Command(
        "before training",
        "Shows examples one by one on a page of this machine, and writes the label of each key to labels.csv.",
        ("label sample --num_labels 20 --hide_labels true --static label.html",),
        "sft_lightning.selection.label:label",
        words={"SOURCE": "source"},
    ),
    "find-lr": Command(
        "before training",
        "Tries rising learning rates for some steps, and suggests one.",
        (f"find-lr --config {FINE_TUNE}", f"find-lr --config {FINE_TUNE} --min_lr 1e-5 --max_lr 1 --steps 200"),
        "sft_lightning.tuning.find_lr:find_lr",
        takes_fit=True,
    ),
    "find-batch-size": Command(
        "before training",
        "Measures examples per second by batch size until memory runs out, and suggests a batch size.",
        (f"find-batch-size --config {FINE_TUNE}", f"find-batch-size --config {FINE_TUNE} --max 64 --seconds 3"),
        "sft_lightning.tuning.find_batch_size:find_batch_size",
        takes_fit=True,
    ),
    "find-precision": Command(
        "before training",
        "Measures whether half precision is faster on this machine.",
        (f"find-precision --config {FINE_TUNE}", f"find-precision --config {FINE_TUNE} --rounds 5 --seconds 5"),
        "sft_lightning.tuning.find_precision:find_precision",
        takes_fit=True,
    ),
    "convert-boxes": Command(
        "before training",
        "Writes boxes of COCO, YOLO, Pascal VOC or a table in another of these forms, with copies of the files.",
        ("convert-boxes my_scenes/ my_voc/ --to voc",),
        "sft_lightning.data.vision.write_boxes:convert_boxes",
        words={"SOURCE": "source", "OUT": "out"},
    ),
    "study": Command(
        "compare",
        "Compares methods over label budgets and seeds: did the unlabeled examples help?",
        ("study --config configs/study/quickstart.yaml --jobs 2",),
        "sft_lightning.study.study:study",
    ),
    "rank": Command(
        "compare",
        "Compares backbones and past runs as starting points for your labels, without training them.",
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
        "Writes a trained model, or a part of it, to one file: safetensors, ONNX or pt2.",
        (f"export {RUN}", f"export {RUN} --part backbone --format pt2"),
        "sft_lightning.export.export:export",
        words={"RUN": "run"},
        beside=("{stem}.json", "model_card.md"),
    ),
    "lineage": Command(
        "afterwards",
        "Shows what a run started from, back to the first source.",
        (f"lineage {RUN}",),
        "sft_lightning.runs.lineage:show_lineage",
        words={"RUN": "run"},
        needs_torch=False,
    ),
    "repeat": Command(
        "afterwards",
        "Trains a run again and checks that the result is the same bit for bit; exits with 1 if not.",
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
    """Return the usage line of a command.

    Args:
        name: Name of the command.
    """
    return " ".join(["sft-lightning", name, *COMMANDS[name].words, "[options]"])


def format_command_help(name: str) -> str:
    """Return the part of a command's help that comes before its options.

    Args:
        name: Name of the command.
    """
    command = COMMANDS[name]
    lines = [f"usage: {format_usage(name)}", "", command.does]
    if command.takes_fit and name != "fit":
        lines.append("It also takes the settings of fit.")
    lines += [f"{what} is short for --{option}." for what, option in command.words.items()]
    lines += ["", "examples:", *(f"  sft-lightning {example}" for example in command.examples)]
    return "\n".join(lines) + "\n\n"


def explain_unknown_option(shown: str, hint: str, name: str) -> str:
    """Explain that a command does not have an option.

    Args:
        shown: Option as the user gave it.
        hint: Suggestion in parentheses, or an empty string.
        name: Name of the command.
    """
    return f"there is no option {shown}{hint}; 'sft-lightning {name} --help' lists all"


def explain_missing(name: str, what: str) -> str:
    """Explain that a command needs more than it was given.

    Args:
        name: Name of the command.
        what: Missing options or words.
    """
    return f"{name} needs {what}: give {format_usage(name)}, such as 'sft-lightning {COMMANDS[name].examples[0]}'"


def suggest_command(folder: Path) -> str:
    """Return a line that names the one command to type where a folder holds images, else an empty string.

    Args:
        folder: Folder to look into: its own images, those of class folders, and those below `train`.
    """
    patterns = (f"{levels}*.{kind}" for levels in ("", "*/", "train/*/") for kind in ("png", "jpg", "jpeg", "JPG"))
    if not any(True for pattern in patterns for _ in folder.glob(pattern)):
        return ""
    return "This folder holds images. To learn from them:\n  sft-lightning solve .\n"


def format_help() -> str:
    """Return the general help."""
    lines = ["usage: sft-lightning COMMAND [options]", ""]
    lines += [f"Learn from few labels and many unlabeled examples (version {__version__}).", ""]
    for group, names in groupby(COMMANDS, lambda name: COMMANDS[name].group):
        lines += [f"{group}:", *(f"  {name:<17}{COMMANDS[name].does}" for name in names), ""]
    shown = [COMMANDS[name].examples[0] for name in ("fit", "test", "predict", "report")]
    lines += ["examples:", *(f"  sft-lightning {example}" for example in shown), ""]
    return "\n".join([*lines, "'sft-lightning COMMAND --help' lists the options of a command.", ""])
