"""Images."""

from sft_lightning.modalities.base import Modality, SolveChoices

_PRETRAIN_VIEW = ("crop_scale=[0.3,1.0]", "flip=false", "brightness=0.4", "contrast=0.4", "blur=0")

MODALITY = Modality(
    name="image",
    noun="image",
    data_module="sft_lightning.data.vision.datamodule:ImageDataModule",
    mask_data_module="sft_lightning.data.vision.segmentation_datamodule:SegmentationDataModule",
    mask_detector="sft_lightning.data.vision.open_masks:holds_masks",
    box_data_module="sft_lightning.data.vision.detection_datamodule:DetectionDataModule",
    box_detector="sft_lightning.data.vision.open_boxes:holds_boxes",
    networks="sft_lightning.networks.vision.backbones",
    checks="sft_lightning.audit.image_checks:ImageChecks",
    mask_checks="sft_lightning.audit.mask_checks:MaskChecks",
    box_checks="sft_lightning.audit.box_checks:BoxChecks",
    program_form="sft_lightning.export.image_form:ImageForm",
    explainer="sft_lightning.report.attention:GradCAM",
    hub_tasks=("image-classification", "image-feature-extraction"),
    is_fast=True,
    solve=SolveChoices(
        unit="px",
        plain="pixels",
        small_view=("--data.weak_view.crop_padding=2",),
        large_view=("--data.weak_view.crop_scale=[0.3,1.0]", "--model.layer_decay=0.75"),
        pretrained="resnet8:flatten",
        pretrain_view=tuple(f"--data.pretrain_view.{change}" for change in _PRETRAIN_VIEW),
        skipping="on_bad_image",
        one_class="if these are normal images, find defects with AnomalyDetector (docs/defects.md)",
        has_sides=True,
    ),
)
