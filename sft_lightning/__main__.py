"""The command `sft-lightning`, also `python -m sft_lightning`. Help and misspelled commands need no torch."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sft_lightning._version import __version__
from sft_lightning.cli.argv import normalize_argv
from sft_lightning.cli.commands import COMMANDS, format_command_help, format_help, suggest_command
from sft_lightning.utils.errors import InputError, IssuesFound, StoppedBySignal, did_you_mean, find_input_error

_HELP = ("-h", "--help", "help")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Arguments after `sft-lightning`; those of the process when None.

    Returns:
        Exit code: 0 for success, 1 if the command found the issues that it looks for, 2 if the input was wrong, or
        128 plus the number of the signal that stopped it.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or (len(argv) == 1 and argv[0] in _HELP):
        sys.stdout.write(format_help())
        sys.stdout.write("" if argv else suggest_command(Path.cwd()))
        return 0
    if argv[0] == "--version":
        sys.stdout.write(f"sft-lightning {__version__}\n")
        return 0
    if argv[0] in _HELP:  # `help fit`
        argv = [argv[1], "--help"]
    try:
        _run(argv)
    except StoppedBySignal as stopped:
        sys.stderr.write(f"sft-lightning: {stopped}\n")
        return 128 + stopped.signal
    except KeyboardInterrupt:  # where no command has anything to save, such as while it imports PyTorch
        sys.stderr.write("sft-lightning: stopped by Ctrl-C\n")
        return 128 + signal.SIGINT
    except IssuesFound as found:
        sys.stdout.write(f"{found}\n")
        return 1
    except Exception as error:
        mistake: BaseException | None = find_input_error(error)
        # Lightning also explains settings that do not go together, and packages that a callback needs, in a sentence.
        # Only a module that Python itself does not find has a name.
        is_explained = isinstance(error, ModuleNotFoundError) and error.name is None
        if mistake is None and (is_explained or type(error).__name__ == "MisconfigurationException"):
            mistake = error
        if mistake is None:
            raise
        sys.stderr.write(f"sft-lightning: {' '.join(str(mistake).split())}\n")
        return 2
    return 0


def _run(argv: list[str]) -> None:
    name = argv[0]
    if name not in COMMANDS:
        if name.startswith("-") and (later := [arg for arg in argv if arg in COMMANDS]):
            raise InputError(f"{name!r} stands before the command: give 'sft-lightning {later[0]} {name} ...'")
        raise InputError(
            f"{name!r} is not a command{did_you_mean(name, list(COMMANDS))}; commands: {', '.join(COMMANDS)}"
        )
    if any(arg in _HELP[:2] for arg in argv):
        # Shown at once; the options follow when everything is imported.
        sys.stdout.write(format_command_help(name))
        sys.stdout.flush()
        argv = [name, "--help"]
    else:
        from sft_lightning.cli.early_checks import check_early

        argv = normalize_argv(argv)
        check_early(argv)
        if COMMANDS[name].needs_torch and "torch" not in sys.modules and sys.stderr.isatty():
            sys.stderr.write(f"sft-lightning {name}: importing PyTorch ...\n")  # which takes seconds
            sys.stderr.flush()
    if COMMANDS[name].function:
        from sft_lightning.cli.dispatch import run_command

        run_command(argv)
    else:
        from sft_lightning.cli.lightning_cli import destroy_process_group, run

        run(argv)
        destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
