"""Groups of files that say what they belong to, such as a patient, and of frames of one file."""

from collections.abc import Mapping

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.frames import split_name, split_path
from sft_lightning.data.placement_checks import Placed, refuse_straddling
from sft_lightning.data.source import Examples, Source


def group_files(source: Source, parts: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return splits of files with their groups: what a file says it belongs to, or a file of several frames.

    Args:
        source: Source of the splits.
        parts: Splits whose storage holds files, without groups.

    Raises:
        InputError: A group is in more than one of training, validation and test.
    """
    made, placed = {}, list[Placed]()
    for split, part in parts.items():
        assert isinstance(part.storage, FileStorage)
        found = source.find_groups(part.storage.paths) or [""] * len(part)
        for i, path in enumerate(part.storage.paths):
            if not found[i] and split_path(path)[1] is not None:
                found[i] = split_name(part.ids[i])[0]
        placed += [Placed(name, name, "", split, group) for name, group in zip(part.ids, found, strict=True)]
        groups = [group or name for name, group in zip(part.ids, found, strict=True)] if any(found) else None
        made[split] = Examples(part.storage, part.ids, part.labels, groups)
    refuse_straddling(f"folder '{show_path(source.name)}'", placed)
    return made
