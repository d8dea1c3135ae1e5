"""Titles under which `--help` lists the settings of a class that has many of them. In YAML they stay flat.

A subclass lists its own groups before those of its bases, and replaces those of the same title; a setting without a
group stays under the class itself.
"""

import inspect

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "ImageDataModule": {
        "Source": ("source", "root", "download", "unlabeled_source", "predict_source", "class_names", "on_bad_image"),
        "Labels and splits": (
            "num_labels", "labels_per_class", "labels", "label_separator", "label_columns", "seed", "val_size",
            "test_size",
            "split_file", "test_on", "on_leak",
        ),
        "Images": ("image_size", "channels", "background", "center_crop", "resize", "value_range"),
        "Views": (
            "weak_view", "strong_view", "labeled_view", "pretrain_view", "pretrain_view_2", "pretrain_view_local",
        ),
        "Batches": ("batch_size", "unlabeled_ratio", "balanced_labels", "eval_batch_size", "steps_per_epoch"),
        "Loading": ("num_workers", "cache", "shard_window"),
    },
    "TextDataModule": {
        "Source": (
            "source", "text_column", "text_2_column", "label_column", "split_column", "group_column",
            "augmented_columns",
            "unlabeled_source", "predict_source", "class_names",
        ),
        "Labels and splits": (
            "num_labels", "labels_per_class", "labels", "label_separator", "label_columns", "seed", "val_size",
            "test_size",
            "split_file", "test_on", "on_leak",
        ),
        "Texts": ("tokenizer", "max_length"),
        "Views": ("weak_view", "strong_view", "labeled_view"),
        "Batches": (
            "batch_size", "unlabeled_ratio", "balanced_labels", "eval_batch_size", "steps_per_epoch", "group_by_length",
            "max_tokens",
        ),
    },
    "AudioDataModule": {
        "Source": ("source", "root", "unlabeled_source", "predict_source", "class_names", "on_bad_recording"),
        "Labels and splits": (
            "num_labels", "labels_per_class", "labels", "label_separator", "label_columns", "seed", "val_size",
            "test_size",
            "split_file", "test_on", "on_leak",
        ),
        "Windows": ("sample_rate", "seconds", "eval_windows"),
        "Network inputs": ("encoding", "mels", "frame_ms", "hop_ms"),
        "Views": ("weak_view", "strong_view", "labeled_view"),
        "Batches": ("batch_size", "unlabeled_ratio", "balanced_labels", "eval_batch_size", "steps_per_epoch"),
        "Loading": ("num_workers", "cache"),
    },
    "SegmentationDataModule": {
        "Source": (
            "source", "root", "unlabeled_source", "predict_source", "class_names", "class_colors", "ignore_index",
            "on_bad_image",
        ),
        "Labels and splits": ("num_labels", "seed", "val_size", "test_size", "split_file", "test_on", "on_leak"),
        "Images": ("image_size", "channels", "background", "resize", "value_range", "predict_tile"),
        "Views": ("weak_view", "strong_view", "labeled_view"),
        "Batches": ("batch_size", "unlabeled_ratio", "eval_batch_size", "steps_per_epoch"),
        "Loading": ("num_workers",),
    },
    "DetectionDataModule": {
        "Source": ("source", "root", "unlabeled_source", "predict_source", "class_names", "on_bad_image"),
        "Labels and splits": ("num_labels", "seed", "val_size", "test_size", "split_file", "test_on", "on_leak"),
        "Images": ("image_size", "channels", "background", "resize", "value_range"),
        "Views": ("weak_view", "strong_view", "min_visible", "labeled_view"),
        "Batches": ("batch_size", "unlabeled_ratio", "eval_batch_size", "steps_per_epoch"),
        "Loading": ("num_workers",),
    },
    "AnomalyDataModule": {
        "Source": (
            "source", "root", "download", "normal_class", "unlabeled_as_normal", "unlabeled_source", "predict_source",
            "class_names", "on_bad_image",
        ),
        "Labels and splits": ("num_labels", "seed", "val_size", "test_size", "split_file", "test_on", "on_leak"),
        "Images": ("image_size", "channels", "background", "resize", "value_range"),
        "Views": (),  # none of those of `ImageDataModule`
        "Batches": ("batch_size",),
        "Loading": ("num_workers",),
    },
    "AnomalyDetector": {
        "Method": ("method", "false_alarm_rate"),
        "Features": ("backbone", "weights", "strides", "mean", "std"),
    },
    "StudentTeacherDetector": {
        "Method": ("strides", "false_alarm_rate"),
        "Teacher": ("backbone", "weights", "mean", "std"),
        "Optimization": ("optimizer", "lr_scheduler", "on_nonfinite", "nonfinite_limit"),
    },
    "FineTuneDetector": {
        "Network": ("backbone", "detector", "width", "anchor_scale", "mean", "std"),
        "Detections": ("score_threshold", "nms_threshold", "max_detections", "drawn_score"),
        "Start": ("weights",),
        "How much is tuned": (
            "tune", "last_k_blocks", "head_only_epochs", "backbone_lr_scale", "layer_decay", "norm_stats",
        ),
        "Loss": ("regularizer",),
        "Optimization": ("optimizer", "lr_scheduler", "on_nonfinite", "nonfinite_limit"),
    },
    "SemiSupervisedDetector": {
        "Unlabeled examples": (
            "threshold", "lambda_u", "burn_in_steps", "ema_decay", "learn_pseudo_corners", "control",
        ),
    },
    "FineTuneClassifier": {
        "Network": ("backbone", "mean", "std", "compile"),
        "Start": ("weights", "head_weights", "head_start"),
        "How much is tuned": (
            "tune", "last_k_blocks", "adapter", "head_only_epochs", "backbone_lr_scale", "layer_decay",
            "norm_stats", "cache_features",
        ),
        "Loss": ("label_smoothing", "multi_label_loss", "segmentation_loss", "class_weights", "regularizer"),
        "Optimization": ("optimizer", "lr_scheduler", "on_nonfinite", "nonfinite_limit"),
    },
    "FrozenFeatureClassifier": {
        "Classifier": ("classifier", "whiten", "max_examples"),
        "Features": ("backbone", "weights", "mean", "std"),
    },
    "SelfSupervisedModule": {
        "Objective": ("objective", "regularizer"),
        "Encoder": ("backbone", "weights", "mean", "std", "compile"),
        "Metrics": ("neighbors", "remembered"),
        "Optimization": ("optimizer", "lr_scheduler", "on_nonfinite", "nonfinite_limit"),
    },
    "DistillModule": {
        "Teacher": ("teacher", "answer_loss", "temperature", "answer_weight", "feature_weight", "label_weight"),
    },
    "SemiSupervisedModule": {
        "Unlabeled examples": ("strategy", "lambda_u", "lambda_ramp", "ramp_steps", "ema_decay", "control"),
        "Schedule": ("schedule", "warmup_steps", "supervised_steps", "unsupervised_steps"),
    },
}  # fmt: skip


def list_setting_groups(cls: type) -> dict[str, tuple[str, ...]]:
    """Return the names of settings by the title of their group.

    Args:
        cls: Class whose settings the command line takes.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for base in inspect.getmro(cls):
        groups = {**groups, **{k: v for k, v in GROUPS.get(base.__name__, {}).items() if k not in groups}}
    return groups
