"""The forms of programs by modality."""

from typing import Any

from sft_lightning.export.image_form import ImageForm
from sft_lightning.export.program_form import ProgramForm
from sft_lightning.export.text_form import TextForm
from sft_lightning.utils.inputs import InputSpec

FORMS: dict[str, type[ProgramForm]] = {"image": ImageForm, "text": TextForm}


def find_form(metadata: dict[str, Any]) -> ProgramForm | None:
    """Return how examples go into the programs of a network, or None if its modality has none.

    Args:
        metadata: Metadata of the export.
    """
    spec = InputSpec.from_settings(metadata)
    form = None if spec is None else FORMS.get(spec.modality)
    return None if form is None else form({**metadata, "input_spec": spec})
