"""The command `sft-lightning`, also `python -m sft_lightning`: help and misspellings are answered without torch."""

import sys
from collections.abc import Sequence

from sft_lightning import __version__
from sft_lightning.errors import Stopped, cause, near

COMMANDS = {
    "fit": "train a model: pre-train without labels or fine-tune on few",
    "validate": "measure a trained model on the validation split",
    "test": "measure a trained model on the test split",
    "predict": "write the class and probabilities of each image to predictions.csv",
    "export": "write the backbone, the head or both of a trained model as a file of its own",
    "lineage": "tell what a run started from, back to the first source",
    "rank": "compare backbones and past runs as starts for your labels, without training them",
    "study": "compare methods over label budgets and seeds: did the unlabeled images help?",
    "report": "write what a run came to as one page: mistakes, calibration, what to label next",
    "preview": "draw training images beside their weak and strong views",
    "audit": "find leaks, duplicates, broken files and wrong labels before training; --strict: exit code 1 on leaks",
    "degree": "find by cross-validation how far to fine-tune",
}
OTHERS = ("export", "lineage", "rank", "degree", "study", "report", "preview", "audit")  # not Lightning's
HELP = f"""usage: sft-lightning COMMAND [options]

Learn from few labels and many unlabeled images (version {__version__}).

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in COMMANDS.items())}

examples:
  sft-lightning fit --config configs/quickstart/fine_tune.yaml
  sft-lightning fit --config configs/quickstart/fine_tune.yaml --data.init_args.source my_images/
  sft-lightning test --ckpt_path lightning_logs/quickstart/fine_tune/version_0
  sft-lightning predict --ckpt_path lightning_logs/quickstart/fine_tune/version_0 --data.init_args.predict_source new/

'sft-lightning COMMAND --help' lists the options of a command.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: Words after `sft-lightning`; those of the process when None.

    Returns:
        The exit code: 0, 1 where `audit --strict` finds leaks, 2 where the input was wrong, or 128 and the number of
        the signal that stopped it.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"sft-lightning {__version__}\n")
        return 0
    # Options may stand before the command; then Lightning's own parser must see them.
    if words[0] not in COMMANDS and not (words[0].startswith("-") and any(word in COMMANDS for word in words)):
        known = list(COMMANDS)
        return _refuse(f"{words[0]!r} is no command{near(words[0], known)}; commands: {', '.join(known)}")
    try:
        if words[0] in OTHERS:
            from sft_lightning.commands import run as other

            return other(words)
        from sft_lightning.cli import leave, run

        run(words)
        leave()
    except Stopped as stopped:
        sys.stderr.write(f"sft-lightning: {stopped}\n")
        return 128 + stopped.signal
    except Exception as error:
        mistake: BaseException | None = cause(error)
        # What Lightning says of settings that do not go together is a sentence, too.
        if mistake is None and type(error).__name__ == "MisconfigurationException":
            mistake = error
        if mistake is None:
            raise
        return _refuse(" ".join(str(mistake).split()))
    return 0


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"sft-lightning: {sentence}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
