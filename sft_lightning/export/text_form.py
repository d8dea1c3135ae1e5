"""Programs of texts: token ids with their mask, and the code from a text to them.

A program holds no tokenizer: that of a published encoder lies beside it in its own format, hashed words take a
few lines of code. The number of texts and their length are free.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.export.program_form import Given, Program, ProgramForm, format_call, format_imports, list_inputs
from sft_lightning.networks.text.kept_files import FOLDER
from sft_lightning.networks.text.tokenizers import HashTokenizer, make_tokenizer
from sft_lightning.utils.inputs import Inputs

_LEAST = 3  # tokens: exporters take a side of 1 for a constant, also that of the pairs of neighbors


class TextProgram(Program):
    """Module from token ids and their mask to logits, or to features if it has no head."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute logits or features.

        Args:
            input_ids: Ids of tokens, int64, (N, L).
            attention_mask: 1 for tokens, 0 for padding, int64, (N, L).

        Returns:
            Logits (N, K) or features (N, F), float32.
        """
        return self.compute({"input_ids": input_ids, "attention_mask": attention_mask})


class TextForm(ProgramForm):
    """Token ids and which of them are given, int64, (N, L) each."""

    program = TextProgram

    def collect(self, data: FewLabelDataModule, name: str) -> list[Given]:
        """Return the ids and the mask, of at least three tokens."""

        def pad(x: Inputs) -> Given:
            missing = max(0, _LEAST - x["input_ids"].shape[1])
            return {name: torch.nn.functional.pad(x[name], (0, missing)) for name in ("input_ids", "attention_mask")}

        return [pad(x) for x in list_inputs(data, name)]

    def decode(self, given: Given) -> Inputs:
        """Return the ids and the mask."""
        return given

    def draw(self, count: int, generator: torch.Generator) -> Given:
        """Return random ids in texts of all lengths."""
        longest = self.spec.shape[0]
        lengths = torch.randint(1, longest + 1, (count, 1), generator=generator)
        mask = (torch.arange(max(_LEAST, longest)) < lengths).long()
        known = make_tokenizer(self.spec.encoding).num_tokens
        return {
            "input_ids": torch.randint(known, mask.shape, generator=generator) * mask, "attention_mask": mask,
        }  # fmt: skip

    @property
    def free_sides(self) -> dict[str, dict[int, Dim]]:
        """The number of texts, and their length."""
        sides = {0: Dim("batch"), 1: Dim("length", min=_LEAST, max=max(self.spec.shape[0], _LEAST + 1))}
        return {"input_ids": sides, "attention_mask": sides}

    def cut(self, given: Given) -> Given:
        """Return a batch up to its longest text."""
        longest = max(_LEAST, int(given["attention_mask"].sum(1).max()))
        return {name: tensor[:, :longest] for name, tensor in given.items()}

    def describe(self) -> dict[str, Any]:
        """Return the metadata on the tokens."""
        names = ("input_ids", "attention_mask")
        return {
            "inputs": [{"name": name, "type": "int64", "shape": ["batch", "length"]} for name in names],
            "inside": [],
        }

    def describe_preprocessing(self, data: dict[str, Any]) -> dict[str, Any]:
        """Describe how a text becomes tokens."""
        tokenizer = make_tokenizer(self.spec.encoding)
        how = {"kind": "hashed words", "ids": tokenizer.num_tokens} if isinstance(tokenizer, HashTokenizer) else {
            "kind": "tokenizer.json", "file": f"{FOLDER}/tokenizer.json",
        }  # fmt: skip
        return {"tokenizer": how, "max_length": self.spec.shape[0], "padding": "mask 0 at the end", "known": bool(data)}

    def explain(self) -> str:
        """Return the sentences on the tokens."""
        steps = self.metadata["preprocessing"]
        read = f"`{steps['tokenizer']['file']}`" if "file" in steps["tokenizer"] else "hashed words, as in the code"
        return (
            f"Inputs `input_ids` and `attention_mask`: int64, (batch, length), with a length of {_LEAST} to "
            f"{steps['max_length']} tokens; the mask is 1 for tokens and 0 for padding. Tokens: {read}; other ones "
            "give other outputs."
        )

    def explain_limits(self) -> list[str]:
        """Return a sentence on the length of what the network reads."""
        return [f"It reads the first {self.spec.shape[0]} tokens of a text and nothing after them."]

    def format_code(self, file: Path) -> list[str]:
        """Return code for a text in a variable."""
        steps = self.metadata["preprocessing"]
        most = steps["max_length"]
        if "file" in steps["tokenizer"]:
            imports = format_imports(self.metadata, "from tokenizers import Tokenizer")
            made = [
                f'tokenizer = Tokenizer.from_file("{steps["tokenizer"]["file"]}")',
                "tokenizer.no_padding()",
                f"tokenizer.enable_truncation({most})",
                "ids = tokenizer.encode(text).ids",
            ]
        else:
            imports = format_imports(self.metadata, "import hashlib", "import re")
            made = [
                r'words = re.findall(r"\w+|[^\w\s]", text.lower())' + f"[:{most}]",
                "digests = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]",
                f'ids = [1 + int.from_bytes(digest, "little") % {steps["tokenizer"]["ids"] - 1} for digest in digests]',
            ]
        return [
            *imports,
            "",
            'text = open("text.txt", encoding="utf-8").read()',
            *made,
            f"length = max({_LEAST}, len(ids))",
            "input_ids = np.zeros((1, length), np.int64)",
            "input_ids[0, : len(ids)] = ids",
            "attention_mask = (np.arange(length) < len(ids)).astype(np.int64)[None]",
            *format_call(file, self.metadata, {"input_ids": "input_ids", "attention_mask": "attention_mask"}),
        ]
