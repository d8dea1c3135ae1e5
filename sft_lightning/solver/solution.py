"""What `solve` returns."""

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from sft_lightning.cli.lightning_cli import run as command
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.cli.logging import silence_logs
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.data.frames import name_frame, split_name
from sft_lightning.networks.weights import read_weights
from sft_lightning.solver.deliver import EXPORTS
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.tables import align_columns

_ANNOTATED = {"mask": "masks", "boxes": "boxes"}  # what people draw, by the kind of target


@dataclass
class Solution:
    """Solution of `solve`; as text, its summary.

    Attributes:
        folder: Folder with `report.html`, `predictions.csv`, `label_next.csv`, `summary.json` and the model.
        verdict: Sentences, the most important one first.
        recipes: Name, use of unlabeled examples and score of each recipe, the best first.
        run: Folder of the run of the model.
        summary: Content of `summary.json`.
    """

    folder: Path
    verdict: list[str]
    recipes: list[list[str]]
    run: Path
    summary: dict[str, Any]

    @cached_property
    def model(self) -> LightningModule:
        """The trained model, in eval mode."""
        loaded = LoadedRun(str(self.run))
        loaded.cli.model.load_state_dict(read_weights(loaded.checkpoint)[0], strict=False)
        model: LightningModule = loaded.cli.model
        return model.eval()

    def predict(self, inputs: str | Path | Sequence[str | Path]) -> list[dict[str, str]]:
        """Classify further examples.

        Args:
            inputs: Folder, manifest or file, or paths of files; a solution of texts also takes texts in a list, where
                strings are texts and `Path` objects are files.

        Returns:
            One mapping for each example in the order given, as `predictions.csv` of `sft-lightning predict` has them.
            Texts of a list stand under `text` in place of `path`.

        Raises:
            InputError: A file cannot be read, or a text is blank.
        """
        takes_texts = self.summary.get("modality") == "text"
        if not isinstance(inputs, str | Path) and takes_texts and any(isinstance(each, str) for each in inputs):
            return self._predict_texts(inputs)
        if isinstance(inputs, str) and takes_texts and not Path(inputs).exists():
            raise InputError(f"inputs is {inputs!r:.60}, which is not a folder or table: give texts in a list")
        with tempfile.TemporaryDirectory() as folder:
            given = [] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
            for k, path in enumerate(given):  # links, since a manifest must not lead out of its folder
                (Path(folder) / f"{k:09d}{path.suffix}").symlink_to(path.resolve())
            rows = self._predict_source(inputs if isinstance(inputs, str | Path) else folder)
        names = {f"{k:09d}{path.suffix}": str(path) for k, path in enumerate(given)}
        found = [split_name(row["path"]) for row in rows]
        paths = [names.get(file, file) if number is None else name_frame(names.get(file, file), number)
                 for file, number in found]  # fmt: skip
        return [{**row, "path": path} for row, path in zip(rows, paths, strict=True)]

    def _predict_texts(self, texts: Sequence[str | Path]) -> list[dict[str, str]]:
        """Classify texts that are given themselves."""
        for k, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                what = "is blank" if isinstance(text, str) else f"is {text!r:.60}"
                raise InputError(f"inputs[{k}] {what}: give texts alone, each with words")
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "texts.jsonl")
            table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
            rows = self._predict_source(table)
        answers = [{name: value for name, value in row.items() if name != "path"} for row in rows]
        return [{"text": str(text), **answer} for text, answer in zip(texts, answers, strict=True)]

    def _predict_source(self, source: str | Path) -> list[dict[str, str]]:
        """Return the rows of `predictions.csv` of a source."""
        words = ["predict", "--ckpt_path", str(self.run), f"--data.init_args.predict_source={source}"]
        with preserve_process(), silence_logs():
            command([*words, "--trainer.enable_progress_bar=false"])
        with (self.run / "predictions.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def __str__(self) -> str:
        table = "\n".join(
            align_columns(
                [["recipe", "uses unlabeled examples", f"{self.summary['metric']} on held-out labels"], *self.recipes]
            )
        )
        tables = "predictions.csv", "predictions_by_file.csv"
        names = ("report.html", *tables, "predicted_masks", "predicted_boxes", "label_next.csv", *EXPORTS)
        files = f"{self.folder} ({', '.join(name for name in names if (self.folder / name).exists())})"
        use = f"sft-lightning predict {self.folder} NEW_DATA"
        if threshold := self.summary.get("score_threshold"):
            use += f" --model.score_threshold {threshold:.2f}"
        if (self.folder / "label_next.csv").is_file():
            path, given = f"{self.folder}/label_next.csv", self.summary.get("label_settings", {})
            words = "".join(f" --{name} '{value}'" for name, value in given.items())
            if self.summary["target"] in _ANNOTATED:
                use += f"\nDraw:     {_ANNOTATED[self.summary['target']]} of the files in {path}, then solve again"
            else:
                use += f"\nLabel:    sft-lightning label SOURCE --ids {path}{words}, then solve with --labels"
        return "\n\n".join([table, "\n".join(self.verdict), f"Solution: {files}\nUse it:   {use}"])
