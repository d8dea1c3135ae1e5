"""The command line: parsing, commands, messages, and Lightning's CLI with our defaults."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_lightning.cli.lightning_cli import SFTCLI, run

__all__ = ["SFTCLI", "run"]


def __getattr__(name: str) -> Any:
    """Import Lightning's CLI only when it is asked for: most commands answer wrong input without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sft_lightning.cli import lightning_cli

    return getattr(lightning_cli, name)
