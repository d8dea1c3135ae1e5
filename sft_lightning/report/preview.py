"""`sft-lightning preview`: what a network will see, before it is trained."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.views import strong, weak
from sft_lightning.runs.paths import LOGS
from sft_lightning.training.callbacks.figures import draw_image_rows
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError

_COUNT, _VIEWS = 10, 2
ROW_TITLES = ("as they are", *["weak view"] * _VIEWS, *["strong view"] * _VIEWS)


class PreviewCLI(DryRunCLI):
    """Takes what `fit` takes."""

    command = "preview"


def preview(words: Sequence[str]) -> str:
    """Draws ten training images, two weak views of each, and two strong ones where strong views change something.

    Args:
        words: What `fit` takes.

    Returns:
        The rows of the picture, and where it is; TensorBoard shows it, too.

    Raises:
        InputError: The input is wrong, or there is no training image.
    """
    cli = run(["fit", *words], PreviewCLI)
    data = cli.datamodule
    if not isinstance(data, ImageDataModule):
        raise InputError(f"data is {type(data).__name__}: preview shows those of an ImageDataModule")
    data.setup("fit")
    name = "labeled" if len(data.splits["labeled"]) else "unlabeled"
    if not len(data.splits[name]):
        raise InputError(f"source {data.source.name!r} has no training image to show")
    order = torch.randperm(len(data.splits[name]), generator=torch.Generator().manual_seed(data.request.seed))
    x = data.pictures_of(name, order[:_COUNT].tolist())
    made = [x] + [weak(x, data.weak_view, draw) for draw in range(_VIEWS)]
    if data.strong_view:
        made += [strong(x, data.weak_view, data.strong_view, draw) for draw in range(_VIEWS)]
    picture = draw_image_rows(torch.stack(made))
    folder = Path(LOGS) / f"{cli.config.fit.run_name}_preview"
    path = folder / "preview.png"
    with open_atomic(path) as staged:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(staged, format="PNG")
    with SummaryWriter(str(folder)) as writer:
        writer.add_image("preview", picture)
    told = "\n".join(f"row {k}  {row}" for k, row in enumerate(ROW_TITLES[: len(made)], 1))
    return f"{len(x)} {name} images of shape {tuple(x.shape[1:])}\n{told}\nWritten: {path}"
