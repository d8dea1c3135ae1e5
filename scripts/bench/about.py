"""What a raw result says of itself: when, on what, with which code."""

import subprocess
from datetime import date
from pathlib import Path


def about() -> dict[str, str | int]:
    """Date, machine, versions, and the commit, `-dirty` where files were changed."""
    here = Path(__file__).parent
    # Here and not above: a plain loop that is measured must not have the package's settings for the process.
    from sft_lightning import __version__
    from sft_lightning.machine import machine

    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=here, capture_output=True, text=True
    )
    return {
        "date": str(date.today()),
        **machine(),
        "sft-lightning": __version__,
        "commit": told.stdout.strip() or "unknown",
    }
