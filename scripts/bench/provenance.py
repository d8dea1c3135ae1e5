"""Publish benchmark results together with their date, machine, versions and commit."""

import json
import subprocess
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any


def collect_provenance() -> dict[str, str | int]:
    """Return the date, machine, versions and commit. Uncommitted changes append `-dirty` to the commit."""
    # Imported here because a plain PyTorch loop must run without the settings that the package makes for the process.
    from sft_lightning import __version__
    from sft_lightning.utils.environment import describe_machine

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "date": str(date.today()),
        **describe_machine(),
        "sft-lightning": __version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def publish(args: Namespace, results: dict[str, Any]) -> None:
    """Print results with their provenance and options, and write them to the file that `--out` names.

    Args:
        args: Options of the command, with `out`, a path or None.
        results: Results by name.
    """
    options = {name: value for name, value in vars(args).items() if name != "out"}
    text = json.dumps({**collect_provenance(), "how": options, **results}, indent=1) + "\n"
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
