"""Recordings of sound."""

from sft_lightning.modalities.base import Modality, SolveChoices

MODALITY = Modality(
    name="audio",
    noun="recording",
    data_module="sft_lightning.data.audio.datamodule:AudioDataModule",
    detector="sft_lightning.data.audio.detection:holds",
    networks="sft_lightning.networks.audio.backbones",
    checks="sft_lightning.audit.recording_checks:RecordingChecks",
    program_form="sft_lightning.export.recording_form:RecordingForm",
    explainer="sft_lightning.report.attention:GradCAM",
    hub_tasks=("audio-classification", "feature-extraction"),
    solve=SolveChoices(
        unit="frames",
        plain="log_mel",
        pretrained="resnet8",
        skipping="on_bad_recording",
        candidate="a wav2vec 2.0",
        starts_random=True,
    ),
)
