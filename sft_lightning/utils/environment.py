"""The machine and the versions that a result was made with."""

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str | int]:
    """Describe processor, cores, graphics cards and versions, for records that outlive the machine."""
    # Imported here because `lineage`, which only reads such records, should not wait for torch.
    import lightning
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cards = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        **({"cards": ", ".join(cards)} if cards else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def format_machine(machine: dict[str, str | int]) -> str:
    """Format the description of a machine as a line of text.

    Args:
        machine: Description that `describe_machine` returns.
    """
    cards = f", {machine['cards']}" if "cards" in machine else ""
    return (
        f"{machine['system']}, {machine['processor']}, {machine['cores']} cores{cards}; Python {machine['python']}, "
        f"torch {machine['torch']}, lightning {machine['lightning']}"
    )
