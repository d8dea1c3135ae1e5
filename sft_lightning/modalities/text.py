"""Texts."""

from sft_lightning.modalities.base import Modality, SolveChoices

MODALITY = Modality(
    name="text",
    noun="text",
    data_module="sft_lightning.data.text.datamodule:TextDataModule",
    detector="sft_lightning.data.text.detection:holds",
    networks="sft_lightning.networks.text.backbones",
    kept_files="sft_lightning.networks.text.kept_files:use_kept_files",
    checks="sft_lightning.audit.text_checks:TextChecks",
    program_form="sft_lightning.export.text_form:TextForm",
    explainer="sft_lightning.report.word_relevance:WordRelevance",
    hub_tasks=("text-classification", "feature-extraction"),
    is_fast=True,
    solve=SolveChoices(
        unit="tokens",
        plain="tfidf",
        plain_encoding="words:1048576",
        second_view="tfidf",
        candidate="a sentence encoder",
    ),
)
