"""Old module names, under which configs, checkpoints and code from version 0.1 still find their classes."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REMOVED_IN = "0.4"
MOVED = {
    "sft_lightning.preflight": "sft_lightning.audit",
    "sft_lightning.reuse": "sft_lightning.transfer",
    "sft_lightning.arguments": "sft_lightning.cli.parser",
    "sft_lightning.callbacks": "sft_lightning.training.callbacks",
    "sft_lightning.callbacks.checkpoint": "sft_lightning.training.callbacks.checkpoint",
    "sft_lightning.callbacks.csv_log": "sft_lightning.training.callbacks.metrics_csv",
    "sft_lightning.callbacks.figures": "sft_lightning.training.callbacks.figures",
    "sft_lightning.callbacks.health": "sft_lightning.training.callbacks.pseudo_label_metrics",
    "sft_lightning.callbacks.other_loggers": "sft_lightning.training.callbacks.external_loggers",
    "sft_lightning.callbacks.pr_curves": "sft_lightning.training.callbacks.pr_curves",
    "sft_lightning.callbacks.predictions": "sft_lightning.training.callbacks.predictions",
    "sft_lightning.callbacks.preemption": "sft_lightning.training.callbacks.preemption",
    "sft_lightning.callbacks.progress": "sft_lightning.training.callbacks.progress",
    "sft_lightning.callbacks.projector": "sft_lightning.training.callbacks.projector",
    "sft_lightning.callbacks.restoring": "sft_lightning.training.callbacks.checkpoint_validation",
    "sft_lightning.callbacks.run_folder": "sft_lightning.training.callbacks.run_folder",
    "sft_lightning.callbacks.settings": "sft_lightning.training.callbacks.hparams",
    "sft_lightning.callbacks.validation_log": "sft_lightning.training.callbacks.validation_log",
    "sft_lightning.calls": "sft_lightning.cli.dispatch",
    "sft_lightning.circumstances": "sft_lightning.runs.provenance",
    "sft_lightning.class_names": "sft_lightning.data.class_names",
    "sft_lightning.commands": "sft_lightning.cli.commands",
    "sft_lightning.completion": "sft_lightning.cli.completion",
    "sft_lightning.console": "sft_lightning.cli.logging",
    "sft_lightning.cpu": "sft_lightning.utils.cpu",
    "sft_lightning.data.affine": "sft_lightning.data.vision.affine",
    "sft_lightning.data.as_they_are": "sft_lightning.data.eval_batches",
    "sft_lightning.data.broken": "sft_lightning.data.vision.file_checks",
    "sft_lightning.data.cached_images": "sft_lightning.data.vision.cached_images",
    "sft_lightning.data.columns": "sft_lightning.data.mmap_columns",
    "sft_lightning.data.datamodule": "sft_lightning.data.vision.datamodule",
    "sft_lightning.data.decoding": "sft_lightning.data.vision.decoding",
    "sft_lightning.data.equal_images": "sft_lightning.data.equal_examples",
    "sft_lightning.data.faults": "sft_lightning.data.issues",
    "sft_lightning.data.file_kinds": "sft_lightning.data.vision.file_kinds",
    "sft_lightning.data.folder_source": "sft_lightning.data.vision.folder_source",
    "sft_lightning.data.folders": "sft_lightning.data.vision.folders",
    "sft_lightning.data.image_cache": "sft_lightning.data.vision.image_cache",
    "sft_lightning.data.image_files": "sft_lightning.data.vision.image_files",
    "sft_lightning.data.images": "sft_lightning.data.vision.images",
    "sft_lightning.data.listing": "sft_lightning.data.vision.prediction_files",
    "sft_lightning.data.orders": "sft_lightning.data.sample_orders",
    "sft_lightning.data.parts": "sft_lightning.data.source",
    "sft_lightning.data.pixel_scale": "sft_lightning.data.vision.pixel_scale",
    "sft_lightning.data.plans": "sft_lightning.data.batch_sampling",
    "sft_lightning.data.randaugment": "sft_lightning.data.vision.randaugment",
    "sft_lightning.data.reading": "sft_lightning.data.prepare_splits",
    "sft_lightning.data.sharding": "sft_lightning.data.vision.write_shards",
    "sft_lightning.data.tables": "sft_lightning.data.manifest",
    "sft_lightning.data.to_predict": "sft_lightning.data.vision.prediction",
    "sft_lightning.data.torchvision_sources": "sft_lightning.data.vision.torchvision_sources",
    "sft_lightning.data.value_ranges": "sft_lightning.data.vision.value_ranges",
    "sft_lightning.data.shards": "sft_lightning.data.vision.shards",
    "sft_lightning.data.sources": "sft_lightning.data.vision.sources",
    "sft_lightning.data.views": "sft_lightning.data.vision.views",
    "sft_lightning.device": "sft_lightning.utils.transfer",
    "sft_lightning.early": "sft_lightning.cli.early_checks",
    "sft_lightning.errors": "sft_lightning.utils.errors",
    "sft_lightning.files": "sft_lightning.utils.atomic",
    "sft_lightning.lean": "sft_lightning.cli.fast_loop",
    "sft_lightning.lineage": "sft_lightning.runs.lineage",
    "sft_lightning.losses.adamatch": "sft_lightning.losses.unlabeled.adamatch",
    "sft_lightning.losses.bss": "sft_lightning.losses.regularizers.bss",
    "sft_lightning.losses.center": "sft_lightning.losses.features.center",
    "sft_lightning.losses.cosine_prototype": "sft_lightning.losses.features.cosine_prototype",
    "sft_lightning.losses.debiasmatch": "sft_lightning.losses.unlabeled.debiasmatch",
    "sft_lightning.losses.delta": "sft_lightning.losses.regularizers.delta",
    "sft_lightning.losses.dst": "sft_lightning.losses.unlabeled.dst",
    "sft_lightning.losses.entropy_minimization": "sft_lightning.losses.unlabeled.entropy_minimization",
    "sft_lightning.losses.feature_losses": "sft_lightning.losses.features",
    "sft_lightning.losses.fixmatch": "sft_lightning.losses.unlabeled.fixmatch",
    "sft_lightning.losses.flexmatch": "sft_lightning.losses.unlabeled.flexmatch",
    "sft_lightning.losses.freematch": "sft_lightning.losses.unlabeled.freematch",
    "sft_lightning.losses.image_reconstruction": "sft_lightning.losses.unlabeled.reconstruction",
    "sft_lightning.losses.l2": "sft_lightning.losses.regularizers.l2",
    "sft_lightning.losses.l2sp": "sft_lightning.losses.regularizers.l2sp",
    "sft_lightning.losses.mean_teacher": "sft_lightning.losses.unlabeled.mean_teacher",
    "sft_lightning.losses.mixmatch": "sft_lightning.losses.unlabeled.mixmatch",
    "sft_lightning.losses.penalties": "sft_lightning.losses.regularizers.base",
    "sft_lightning.losses.pi_model": "sft_lightning.losses.unlabeled.pi_model",
    "sft_lightning.losses.pseudo_label": "sft_lightning.losses.unlabeled.pseudo_label",
    "sft_lightning.losses.ranks": "sft_lightning.utils.distributed",
    "sft_lightning.losses.softmatch": "sft_lightning.losses.unlabeled.softmatch",
    "sft_lightning.losses.strategies": "sft_lightning.losses.unlabeled",
    "sft_lightning.losses.supcon": "sft_lightning.losses.features.supcon",
    "sft_lightning.losses.uda": "sft_lightning.losses.unlabeled.uda",
    "sft_lightning.losses.virtual_adversarial": "sft_lightning.losses.unlabeled.virtual_adversarial",
    "sft_lightning.machine": "sft_lightning.utils.environment",
    "sft_lightning.memory": "sft_lightning.training.oom",
    "sft_lightning.mistakes": "sft_lightning.cli.error_messages",
    "sft_lightning.networks.autoencoders": "sft_lightning.networks.vision.autoencoders",
    "sft_lightning.networks.backbones": "sft_lightning.networks.vision.backbones",
    "sft_lightning.networks.described": "sft_lightning.networks.metadata",
    "sft_lightning.networks.libraries": "sft_lightning.networks.vision.pretrained",
    "sft_lightning.networks.merging": "sft_lightning.networks.adapters",
    "sft_lightning.networks.normalization": "sft_lightning.networks.vision.normalization",
    "sft_lightning.networks.wide_resnet": "sft_lightning.networks.vision.wide_resnet",
    "sft_lightning.options": "sft_lightning.cli.registry",
    "sft_lightning.paradigms.alternation": "sft_lightning.paradigms.batch_schedule",
    "sft_lightning.paradigms.averaging": "sft_lightning.training.ema",
    "sft_lightning.paradigms.heads": "sft_lightning.paradigms.head_weights",
    "sft_lightning.paradigms.class_weights": "sft_lightning.tasks.class_weights",
    "sft_lightning.paradigms.metrics": "sft_lightning.tasks.classification_metrics",
    "sft_lightning.paradigms.nonfinite": "sft_lightning.training.nonfinite",
    "sft_lightning.paradigms.optimization": "sft_lightning.training.optimizers",
    "sft_lightning.paradigms.trust": "sft_lightning.paradigms.calibration",
    "sft_lightning.predict": "sft_lightning.cli.predict_config",
    "sft_lightning.preflight.audit": "sft_lightning.audit.audit",
    "sft_lightning.preflight.classes": "sft_lightning.audit.class_checks",
    "sft_lightning.preflight.copies": "sft_lightning.data.vision.copies",
    "sft_lightning.preflight.duplicates": "sft_lightning.data.vision.near_duplicates",
    "sft_lightning.preflight.files": "sft_lightning.audit.image_checks",
    "sft_lightning.preflight.find_batch_size": "sft_lightning.tuning.find_batch_size",
    "sft_lightning.preflight.find_lr": "sft_lightning.tuning.find_lr",
    "sft_lightning.preflight.find_precision": "sft_lightning.tuning.find_precision",
    "sft_lightning.preflight.findings": "sft_lightning.audit.findings",
    "sft_lightning.preflight.labels": "sft_lightning.audit.label_checks",
    "sft_lightning.preflight.looks": "sft_lightning.data.vision.image_stats",
    "sft_lightning.preflight.overlap": "sft_lightning.audit.overlap",
    "sft_lightning.preflight.pace": "sft_lightning.tuning.throughput",
    "sft_lightning.preflight.range_test": "sft_lightning.tuning.lr_range",
    "sft_lightning.preflight.trial": "sft_lightning.tuning.dry_run",
    "sft_lightning.progress_lines": "sft_lightning.utils.progress_lines",
    "sft_lightning.repeat": "sft_lightning.cli.reproduce",
    "sft_lightning.report.facts": "sft_lightning.report.evaluation",
    "sft_lightning.report.measures": "sft_lightning.report.metrics",
    "sft_lightning.report.page": "sft_lightning.utils.html",
    "sft_lightning.report.records": "sft_lightning.report.run_sections",
    "sft_lightning.resumed": "sft_lightning.cli.resumed_settings",
    "sft_lightning.reuse.candidates": "sft_lightning.transfer.candidates",
    "sft_lightning.reuse.card": "sft_lightning.export.model_card",
    "sft_lightning.reuse.degree": "sft_lightning.tuning.degree",
    "sft_lightning.reuse.folds": "sft_lightning.transfer.folds",
    "sft_lightning.reuse.grid": "sft_lightning.tuning.degree_grid",
    "sft_lightning.reuse.measured": "sft_lightning.export.evaluate",
    "sft_lightning.reuse.opened": "sft_lightning.cli.loaded_run",
    "sft_lightning.reuse.parts": "sft_lightning.export.export",
    "sft_lightning.reuse.programs": "sft_lightning.export.programs",
    "sft_lightning.reuse.rank": "sft_lightning.transfer.rank",
    "sft_lightning.reuse.scores": "sft_lightning.transfer.scores",
    "sft_lightning.reuse.trained": "sft_lightning.runs.trained_network",
    "sft_lightning.reuse.usage": "sft_lightning.export.usage_snippet",
    "sft_lightning.run_data": "sft_lightning.cli.run_config",
    "sft_lightning.run_lock": "sft_lightning.runs.lock",
    "sft_lightning.schedules": "sft_lightning.training.lr_schedulers",
    "sft_lightning.spreadsheet": "sft_lightning.utils.spreadsheet",
    "sft_lightning.study.recipe": "sft_lightning.study.plan",
    "sft_lightning.sync_batch_norm": "sft_lightning.training.sync_batchnorm",
    "sft_lightning.yaml_files": "sft_lightning.utils.yaml_files",
    "sft_lightning.training.callbacks.csv_log": "sft_lightning.training.callbacks.metrics_csv",
}


class _Alias(Loader):
    """A loader that returns the module under its new name, so that a class has one identity under both."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{spec.name} is now {self.target}; the old name will be removed in {REMOVED_IN}",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(self.target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has set that of the old name; the module has run already


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Alias(MOVED[name])) if name in MOVED else None


def install() -> None:
    """Let the import system find modules under their old names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(
            0, _Finder()
        )  # before the finder of files, for which the old package of callbacks has the path of the new one
