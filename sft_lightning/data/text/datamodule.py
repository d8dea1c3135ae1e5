"""`TextDataModule`: labeled, unlabeled, validation and test batches of the texts of a source."""

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.data.batch_sampling import BatchPlan
from sft_lightning.data.budget_batches import BudgetPlan
from sft_lightning.data.copies import Copies
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Examples, Source, take_unlabeled
from sft_lightning.data.splits import LeakPolicy, Split, SplitConfig
from sft_lightning.data.text.near_duplicates import find_copies
from sft_lightning.data.text.source import TextSource
from sft_lightning.data.text.storage import Encoding, TextStorage
from sft_lightning.data.text.tables import Columns
from sft_lightning.data.text.views import TextView, TextViews
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.text.tokenizers import PieceTokenizer, make_tokenizer
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import InputSpec

_WEAK, _STRONG = TextView(delete=0.05), TextView(delete=0.1, hide=0.1, swap=0.1, span=0.1)


class TextDataModule(FewLabelDataModule):
    """Labeled and unlabeled texts, in batches of the parts that the paradigm requests, as in `FewLabelDataModule`."""

    views: TextViews

    def __init__(
        self,
        source: str,
        text_column: str = "text",
        text_2_column: str | None = None,
        label_column: str = "label",
        split_column: str = "split",
        group_column: str = "group",
        augmented_columns: list[str] | None = None,
        tokenizer: str | None = None,
        max_length: int = 128,
        num_labels: int | None = None,
        labels_per_class: int | None = None,
        unlabeled_source: str | None = None,
        seed: int = 0,
        val_size: int | float = 0.1,
        test_size: int | float = 0.2,
        split_file: str | None = None,
        test_on: TestOn = "split",
        on_leak: LeakPolicy = "drop",
        weak_view: TextView = _WEAK,
        strong_view: TextView = _STRONG,
        labeled_view: Literal["weak", "strong", "both"] = "weak",
        batch_size: int = 64,
        unlabeled_ratio: int = 7,
        balanced_labels: bool = False,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        predict_source: str | None = None,
        class_names: list[str] | None = None,
        labels: str | None = None,
        label_separator: str | None = None,
        label_columns: str | list[str] | None = None,
        group_by_length: int = 0,
        max_tokens: int | None = None,
    ) -> None:
        """Keep the settings, and read the source for its classes.

        Args:
            source: Table of texts (`.csv`, `.tsv`, `.jsonl` or `.parquet`) with the columns text and label, and perhaps
                split (train, val, test or unlabeled), group and id; a blank label means unlabeled. Or a folder with a
                folder of `.txt` files for each class, and one called `unlabeled`. Or a data set of Hugging Face in a
                folder, as `save_to_disk` writes it or of Parquet files. Or `sample-texts`, which needs no download:
                glosses of WordNet in six classes.
            text_column: Name of the column of texts.
            text_2_column: Name of the column of second texts, such as answers to questions; null for none.
            label_column: Name of the column of labels.
            split_column: Name of the column of splits, which may be missing.
            group_column: Name of the column of groups, such as authors, which may be missing; a group stays together.
            augmented_columns: Names of columns with other wordings of the text, such as back-translations, one of which
                a strong view begins with; blank where a text has none. Null for none.
            tokenizer: `words` for hashed words (`words:N` with N different ids), `bpe:N` for at most N pieces of words
                that are learned from the training texts, or `hf/` and the folder or the name of a published encoder.
                Null for that of a backbone `hf/...`, and otherwise `words`.
            max_length: Number of tokens of a text that are read; the rest is cut off.
            num_labels: Total number of labels to use; null for all.
            labels_per_class: Number of labels of each class to use; null for all.
            unlabeled_source: Another source, whose training texts are the unlabeled ones.
            seed: Seed of the splits and of the batches.
            val_size: Share (below 1) or number of training texts held out if the source has no validation split.
            test_size: Share or number of training texts held out if the source has no test split.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: `split` to test on the held-out part, `all` to test on all labels the run has not learned.
            on_leak: `drop` to remove a training text that equals a held-out one, `raise` to stop.
            weak_view: Random changes of training texts.
            strong_view: Random changes of strong views, for paradigms that use one.
            labeled_view: View of labeled training texts; `both` doubles the size of their batches (as in AdaMatch).
            batch_size: Training texts of each batch and process.
            unlabeled_ratio: Unlabeled texts for each labeled one if a paradigm trains on both (mu in FixMatch).
            balanced_labels: Whether classes take turns in labeled batches if unlabeled texts are trained on, too.
            eval_batch_size: Texts per batch in validation, test and prediction; null for `batch_size`.
            steps_per_epoch: Batches of an epoch; null for one pass over the unlabeled texts if the paradigm uses them,
                else over the labeled ones.
            predict_source: Table or folder of texts, or a `.txt` file, that `predict` reads; null for the test split.
            class_names: Names of the classes in the order of their numbers, matched with the source by name.
            labels: A CSV with the columns id,label, whose labels are added to those of the source and replace them.
            label_separator: Separator of several classes in a label of a table, such as `;` in `dog;outdoors`; the
                separator alone labels an example of no class. null where each example has one class.
            label_columns: Columns of a table that are 1 where an example has a class and 0 where it lacks it, in place
                of one column of labels: a list of columns, each a class, or a pattern such as `tag_*`, in which the
                star stands for the class. Rows in which all are blank are unlabeled.
            group_by_length: Number of training texts of similar length that come together, such as the batch size of
                all processes, so that batches have less padding; 0 for batches of any lengths.
            max_tokens: Tokens of a training batch of each process, padding included, in place of `batch_size`: texts of
                similar length come together, many short ones or few long ones. Null for `batch_size` texts, which
                batches of cached features have anyway.

        Raises:
            InputError: A setting has an invalid value, or the source cannot be read.
        """
        check_min(1, max_length=max_length)
        check_min(0, group_by_length=group_by_length)
        _check_budget(max_tokens, max_length, group_by_length)
        super().__init__(
            source,
            SplitConfig(seed, num_labels, labels_per_class, float(val_size), float(test_size), on_leak),
            unlabeled_source,
            split_file,
            test_on,
            class_names=class_names,
            labeled_views=("weak", "strong") if labeled_view == "both" else (labeled_view,),
            batch_size=batch_size,
            unlabeled_ratio=unlabeled_ratio,
            balanced_labels=balanced_labels,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_workers=0,
            labels=labels,
            label_separator=label_separator,
            label_columns=label_columns,
        )
        augmented = tuple(augmented_columns or ())
        self.columns = Columns(text_column, text_2_column, label_column, split_column, group_column, augmented)
        self.encoding = Encoding(make_tokenizer(tokenizer or "words"), max_length, group_by_length)
        self.weak_view, self.strong_view = weak_view, strong_view
        self.views = TextViews(self.encoding.tokenizer, weak_view, strong_view, max_length if augmented else None)
        self.predict_source, self.max_tokens = predict_source, max_tokens
        self.batch_budget = None if max_tokens is None else "max_tokens"

    # --- sources

    @property
    def input_spec(self) -> InputSpec:
        """Ids of up to `max_length` tokens."""
        return InputSpec("text", (self.encoding.max_length,), "int64", self.encoding.tokenizer.name)

    @classmethod
    def settings_for(cls, input_spec: InputSpec) -> dict[str, Any]:
        """Return the tokenizer and the length of networks that take texts."""
        if input_spec.modality != "text":
            return {}
        return {"tokenizer": input_spec.encoding, "max_length": input_spec.shape[0]}

    @property
    def source_key(self) -> str:
        """Text of all settings that decide what the source holds, the names of its columns included."""
        return repr((super().source_key, self.columns))

    @property
    def reading_key(self) -> str:
        """Tokenizer and length."""
        return repr((self.encoding.tokenizer.digest, self.encoding.max_length))

    @property
    def size_settings(self) -> dict[str, Any]:
        """Length of the texts, and the tokens of a batch if they are limited."""
        budget = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {**budget, "max_length": self.encoding.max_length}

    @property
    def mean_share(self) -> float:
        """Share of `max_length` that a text takes on average, since texts of similar length are encoded together."""
        splits = [split for name in ("labeled", "unlabeled") if len(split := self.splits[name])]
        lengths = [count_tokens(split) for split in splits]
        return float(torch.cat(lengths).double().mean()) / self.encoding.max_length if lengths else 1.0

    @property
    def fixed_views(self) -> bool:
        """Whether labeled training texts are the same in every epoch."""
        return not self.weak_view and self.labeled_views == ("weak",)

    def describe_inputs(self) -> str:
        """Return how many tokens of a text are read."""
        return f"read up to {self.input_spec.shape[0]} tokens"

    def open_source(self, name: str, needs_labels: bool = True) -> TextSource:
        """Open the source of labeled and unlabeled texts."""
        listed, needed = self._class_names or (), needs_labels and self.labels is None
        how = listed, needed, self.label_separator, self.label_columns
        return TextSource(name, self.columns, self.encoding, *how)

    def open_to_predict(self, name: str) -> TextSource:
        """Open a source of texts to predict, which needs no labels and no other wordings."""
        columns, listed = self.columns._replace(augmented=()), self._class_names or ()
        return TextSource(name, columns, self.encoding, listed, needs_labels=False, to_predict=True)

    def open_unlabeled(self, name: str) -> Examples:
        """Open another source and return its training texts, without labels."""
        return take_unlabeled(self.open_source(name, needs_labels=False))

    def use_recorded(self, input_spec: InputSpec) -> None:
        """Take the tokenizer that a run has learned, where the settings ask for one to be learned.

        Raises:
            InputError: Its file is missing, or the splits were read with another one.
        """
        own, name = self.encoding.tokenizer, input_spec.encoding
        if not isinstance(own, PieceTokenizer) or not name.startswith(f"{own.name}:"):
            return
        own.use(name)

    def setup(self, stage: str) -> None:
        """Read the source and make the splits; learn a tokenizer, unless the weights of a network came with one.

        Raises:
            InputError: Two networks, or a network and the splits, have different tokenizers.
        """
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        encoders = [] if module is None else [one for one in module.modules() if isinstance(one, Encoder)]
        for encoder in encoders:
            self.use_recorded(encoder.input_spec)
        super().setup(stage)
        name = self.encoding.tokenizer.name
        for encoder in encoders if isinstance(self.encoding.tokenizer, PieceTokenizer) else ():
            if encoder.input_spec.encoding not in (name, name.rpartition(":")[0]):
                raise InputError(
                    f"backbone {encoder.name!r} reads the tokens of {encoder.input_spec.encoding}, and the texts were "
                    f"read with {name}: make a new data module for it"
                )
            encoder.input_spec = replace(encoder.input_spec, encoding=name)
            module.hparams["input_spec"] = encoder.input_spec.to_dict()  # checkpoints record what was learned

    def on_splits_read(self, source: Source) -> None:
        """Learn the tokenizer from the training texts if need be, and say how many texts are cut off."""
        tokenizer = self.encoding.tokenizer
        if isinstance(tokenizer, PieceTokenizer) and not tokenizer.is_trained:
            tokenizer.train(text for name in ("labeled", "unlabeled") for text in get_texts(self.splits[name]))
        for name in ("labeled", "unlabeled"):
            storage = self.splits[name].part.storage
            if isinstance(storage, TextStorage):
                storage.encode()
        longer, count = self.encoding.truncated
        if longer:
            rank_zero_info(
                f"Data: {longer:,} of {count:,} texts are longer than {self.encoding.max_length} tokens and are cut "
                "off there (max_length)."
            )

    def find_copies(self, labeled: Split, others: Split | None = None) -> tuple[Copies, Copies]:
        """Find equal and nearly equal texts."""
        texts = [get_texts(split) for split in (labeled, others) if split is not None and len(split)]
        alone = find_copies(texts[0])
        return alone, alone if len(texts) == 1 else find_copies([*texts[0], *texts[1]])

    def show_examples(self, name: str, positions: list[int]) -> list[str]:
        """Return texts as they were written, before anything is cut off."""
        split = self.splits[name]
        return get_texts(Split(split.part, [split.indices[i] for i in positions]))

    # --- training

    def _plan(self, name: str, split: Split, train: bool) -> BatchPlan:
        """Return the batches of a split, of training texts with at most `max_tokens` tokens if that is set."""
        plan, storage = super()._plan(name, split, train), split.part.storage
        if self.max_tokens is None or not train or not isinstance(storage, TextStorage):
            return plan
        if len(self._request.parts) > 1:
            raise InputError(
                f"max_tokens is {self.max_tokens}, but batches are to hold labeled texts and unlabeled_ratio times as "
                "many unlabeled ones: use group_by_length in its place"
            )
        if self._request.balanced_from_epoch is not None:
            raise InputError(
                f"max_tokens is {self.max_tokens}, but batches are to hold all classes equally often: leave it out"
            )
        lengths = storage.count_tokens(split.indices)
        return BudgetPlan(lengths, self.max_tokens, plan.seed, plan.rank, plan.world_size)

    def train_dataloader(self) -> Any:
        """Return the parts that the paradigm requests, side by side.

        Raises:
            InputError: A part has no text, or strong views are requested that change nothing.
        """
        wanted = {"strong", "strong_2", "pretrain"} & {*self._request.views, *self.labeled_views}
        # Dropout alone makes two views of a text differ: Gao et al. 2021, "SimCSE".
        is_simcse = wanted == {"pretrain"} and self.trainer is not None and _has_dropout(self.trainer.lightning_module)
        if wanted and not self.views.has_strong and not is_simcse:
            other = ", or a backbone with dropout" if wanted == {"pretrain"} else ""
            raise InputError(
                "strong_view changes nothing (all of its shares are 0), but strong views are to be learned from: set "
                f"one of them or augmented_columns{other}"
            )
        return super().train_dataloader()


def _check_budget(max_tokens: int | None, max_length: int, group_by_length: int) -> None:
    """Refuse a budget that a single text exceeds, or that comes with another rule for the lengths of a batch."""
    if max_tokens is None:
        return
    if max_tokens < max_length:
        raise InputError(
            f"max_tokens is {max_tokens}, and one text may have {max_length} (max_length): give at least as many"
        )
    if group_by_length:
        raise InputError(
            f"group_by_length is {group_by_length}, but batches of max_tokens hold texts of similar length anyway: "
            "leave one of them out"
        )


def _has_dropout(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in module.modules())


def count_tokens(split: Split) -> Tensor:
    """Return the number of tokens of each text of a split, int64, (N,).

    Args:
        split: Split of a `TextDataModule`.
    """
    storage = split.part.storage
    assert isinstance(storage, TextStorage)
    return storage.count_tokens(list(split.indices))


def get_texts(split: Split) -> list[str]:
    """Return the texts of a split, of pairs both on lines of their own.

    Args:
        split: Split of a `TextDataModule`.
    """
    storage = split.part.storage
    assert isinstance(storage, TextStorage)
    return ["\n".join(storage.texts[i]) for i in split.indices]
