"""What a result says of the machine and the versions that it was made with."""

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, graphics cards and versions, for records that outlive the machine."""
    # Here, since `lineage` only reads such records, and answers before torch would be imported.
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


def format_machine(told: dict[str, str | int]) -> str:
    """The same as a line of text.

    Args:
        told: By `describe_machine`.
    """
    cards = f", {told['cards']}" if "cards" in told else ""
    return (
        f"{told['system']}, {told['processor']}, {told['cores']} cores{cards}; Python {told['python']}, "
        f"torch {told['torch']}, lightning {told['lightning']}"
    )
