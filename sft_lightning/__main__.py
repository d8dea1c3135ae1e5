"""The command `sft-lightning`, also `python -m sft_lightning`: help and misspellings are answered without torch."""

import sys
from collections.abc import Sequence

from sft_lightning._version import __version__
from sft_lightning.cli.argv import normalize_argv
from sft_lightning.cli.commands import COMMANDS, format_command_help, format_help
from sft_lightning.utils.errors import InputError, IssuesFound, StoppedBySignal, did_you_mean, find_input_error

_HELP = ("-h", "--help", "help")


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: Words after `sft-lightning`; those of the process when None.

    Returns:
        The exit code: 0, 1 where a command found what it was to look for, 2 where the input was wrong, or 128 and the
        number of the signal that stopped it.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or (len(words) == 1 and words[0] in _HELP):
        sys.stdout.write(format_help())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"sft-lightning {__version__}\n")
        return 0
    if words[0] in _HELP:  # `help fit`
        words = [words[1], "--help"]
    try:
        _run(words)
    except StoppedBySignal as stopped:
        sys.stderr.write(f"sft-lightning: {stopped}\n")
        return 128 + stopped.signal
    except IssuesFound as found:
        sys.stdout.write(f"{found}\n")
        return 1
    except Exception as error:
        mistake: BaseException | None = find_input_error(error)
        # What Lightning says of settings that do not go together is a sentence, too, and so is what it says of a
        # package that a callback needs; a module that Python itself does not find has a name.
        missing = isinstance(error, ModuleNotFoundError) and error.name is None
        if mistake is None and (missing or type(error).__name__ == "MisconfigurationException"):
            mistake = error
        if mistake is None:
            raise
        sys.stderr.write(f"sft-lightning: {' '.join(str(mistake).split())}\n")
        return 2
    return 0


def _run(words: list[str]) -> None:
    name = words[0]
    if name not in COMMANDS:
        if name.startswith("-") and (later := [word for word in words if word in COMMANDS]):
            raise InputError(f"{name!r} stands before the command: give 'sft-lightning {later[0]} {name} ...'")
        raise InputError(f"{name!r} is no command{did_you_mean(name, list(COMMANDS))}; commands: {', '.join(COMMANDS)}")
    if any(word in _HELP[:2] for word in words):
        # Told at once; the options follow when all is imported.
        sys.stdout.write(format_command_help(name))
        sys.stdout.flush()
        words = [name, "--help"]
    else:
        from sft_lightning.cli.early_checks import check_early

        words = normalize_argv(words)
        check_early(words)
        if COMMANDS[name].needs_torch and "torch" not in sys.modules and sys.stderr.isatty():
            sys.stderr.write(f"sft-lightning {name}: importing PyTorch ...\n")  # which takes seconds
            sys.stderr.flush()
    if COMMANDS[name].function:
        from sft_lightning.cli.dispatch import run_command

        run_command(words)
    else:
        from sft_lightning.cli.lightning_cli import destroy_process_group, run

        run(words)
        destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
