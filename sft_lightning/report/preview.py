"""`sft-lightning preview`: show the views of training examples before training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.runs.paths import LOGS
from sft_lightning.training.callbacks.figures import draw_image_rows
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError

_COUNT, _VIEWS = 10, 2
ROW_TITLES = ("original", *["weak view"] * _VIEWS, *["strong view"] * _VIEWS)


class PreviewCLI(DryRunCLI):
    """Command line of `preview`, which takes the arguments of `fit`."""

    command = "preview"


def preview(argv: Sequence[str]) -> str:
    """Draw ten training examples with two weak views of each, and two strong views where these are used.

    Args:
        argv: Arguments of `fit`.

    Returns:
        Titles of the rows and path of the figure, which TensorBoard shows, too.

    Raises:
        InputError: The arguments are wrong, or no example is for training.
    """
    cli = run(["fit", *argv], PreviewCLI)
    data = cli.datamodule
    if not isinstance(data, FewLabelDataModule):
        raise InputError(
            f"data is {type(data).__name__}: preview needs an ImageDataModule or another FewLabelDataModule"
        )
    data.setup("fit")
    name = "labeled" if len(data.splits["labeled"]) else "unlabeled"
    if not len(data.splits[name]):
        raise InputError(f"source {data.source.name!r} has no training examples to show")
    order = torch.randperm(len(data.splits[name]), generator=torch.Generator().manual_seed(data.request.seed))
    chosen = order[:_COUNT].tolist()
    x = data.annotated_inputs_of(name, chosen)
    views = [x] + [data.views.weak(x, seed) for seed in range(_VIEWS)]
    if data.views.has_strong:
        views += [data.views.strong(x, seed) for seed in range(_VIEWS)]
    shown = [data.show_annotated(view) for view in views]
    titles = ROW_TITLES[: len(views)]
    drawn = [row for row in shown if isinstance(row, torch.Tensor)]
    if not drawn:
        return "\n".join(
            f"{title}: {text}" for texts in zip(*shown, strict=True) for title, text in zip(titles, texts, strict=True)
        )
    figure = draw_image_rows(torch.stack(drawn))
    folder = Path(LOGS) / f"{cli.config.fit.run_name}_preview"
    path = folder / "preview.png"
    with open_atomic(path) as staged:
        Image.fromarray(figure.permute(1, 2, 0).numpy()).save(staged, format="PNG")
    with SummaryWriter(str(folder)) as writer:
        writer.add_image("preview", figure)
    rows = "\n".join(f"row {k}  {title}" for k, title in enumerate(titles, 1))
    return f"{len(chosen)} {name} {data.input_spec.plural} of shape {data.input_spec.shape}\n{rows}\nWritten: {path}"
