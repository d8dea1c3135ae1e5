"""What a raw result says of itself: when, on what, with which code."""

import json
import subprocess
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any


def about() -> dict[str, str | int]:
    """Date, machine, versions, and the commit, `-dirty` where files were changed."""
    here = Path(__file__).parent
    # Here and not above: a plain loop that is measured must not have the package's settings for the process.
    from sft_lightning import __version__
    from sft_lightning.utils.environment import describe_machine

    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=here, capture_output=True, text=True
    )
    return {
        "date": str(date.today()),
        **describe_machine(),
        "sft-lightning": __version__,
        "commit": told.stdout.strip() or "unknown",
    }


def publish(args: Namespace, found: dict[str, Any]) -> None:
    """Prints a result with what it was asked for, and writes it where `--out` says.

    Args:
        args: With `out`, a path or None.
        found: By name.
    """
    how = {name: value for name, value in vars(args).items() if name != "out"}
    text = json.dumps({**about(), "how": how, **found}, indent=1) + "\n"
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
