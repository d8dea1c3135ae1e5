"""What a raw result says of itself: when, on what, with which code."""

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path


def about() -> dict[str, str | int]:
    """Date, machine, versions, and the commit, `-dirty` where files were changed."""
    here = Path(__file__).parent
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=here, capture_output=True, text=True
    )
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "date": str(date.today()),
        "cores": os.cpu_count() or 0,
        "processor": models[0] if models else platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "lightning", "sft-lightning")},
        "commit": told.stdout.strip() or "unknown",
    }
