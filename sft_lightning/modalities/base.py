"""What a modality is to the commands: names of modules and classes, which are imported when they are used."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class SolveChoices:
    """What `solve` does differently for each modality.

    Attributes:
        unit: Unit of the size of an example.
        plain: Backbone without weights, whose features are the inputs themselves, or weights of what they consist of.
        plain_encoding: Encoding of the inputs of that backbone where it is another one than that of networks.
        small_view: Options of trainings of networks of this package.
        large_view: Options of trainings of published networks.
        pretrained: Backbone that is pre-trained from scratch; empty where none is.
        pretrain_view: Options of that pre-training.
        skipping: Setting that leaves out unreadable files; empty where examples are not files.
        second_view: Backbone without weights that gives a second view to co-train with; empty where none is.
        candidate: Published network that the user may name; empty where some are found or fetched.
        starts_random: Whether trainings of `pretrained` from random weights are compared, too.
        one_class: What to do with labels of one class alone, after "or"; empty where nothing is.
        has_sides: Whether the side of the examples in pixels is a setting, which is chosen, too.
    """

    unit: str = ""
    plain: str = ""
    small_view: tuple[str, ...] = ()
    large_view: tuple[str, ...] = ("--model.layer_decay=0.75",)
    pretrained: str = ""
    plain_encoding: str = ""
    pretrain_view: tuple[str, ...] = ()
    skipping: str = ""
    second_view: str = ""
    candidate: str = ""
    starts_random: bool = False
    one_class: str = ""
    has_sides: bool = False


@dataclass(frozen=True)
class Modality:
    """One kind of examples, with what the commands ask of it. The defaults serve any examples.

    Modules are named by their path, what stands in one by `module:name`; an empty text means that there is none.

    Attributes:
        name: Name, as `InputSpec.modality` has it.
        noun: Word for one example.
        data_module: Class of its data module.
        mask_data_module: Class of the data module of examples with masks.
        mask_detector: Function from the name of a source to whether its examples have masks.
        box_data_module: Class of the data module of examples with boxes of objects.
        box_detector: Function from the name of a source to whether its examples have boxes of objects.
        detector: Function from the name of a source to whether it holds such examples; sources that no modality knows
            belong to the one without a detector.
        networks: Module whose `build_from_spec` builds its networks by name; it may have an `adapt_spec`.
        kept_files: Function that reads what networks are built from, weights aside, from the copies in a run's folder.
        checks: Subclass of `ModalityChecks`, for `audit`.
        mask_checks: The same for examples with masks.
        box_checks: The same for examples with boxes.
        program_form: Subclass of `ProgramForm`, for the formats `onnx` and `pt2` of `export`.
        explainer: Subclass of `Explainer`, for `report`.
        hub_tasks: Names that hubs have for what a classifier and a network without a head do.
        is_fast: Whether the fast loop is proven for its data module.
        solve: Choices of `solve`.
    """

    name: str
    noun: str = "example"
    data_module: str = ""
    mask_data_module: str = ""
    mask_detector: str = ""
    box_data_module: str = ""
    box_detector: str = ""
    detector: str = ""
    networks: str = ""
    kept_files: str = ""
    checks: str = "sft_lightning.audit.modality_checks:ModalityChecks"
    mask_checks: str = ""
    box_checks: str = ""
    program_form: str = ""
    explainer: str = ""
    hub_tasks: tuple[str, str] | None = None
    is_fast: bool = False
    solve: SolveChoices = field(default_factory=SolveChoices)


def load(path: str) -> Any:
    """Import what a modality names.

    Args:
        path: Path of a module, or `module:name` of what stands in it.
    """
    module, _, name = path.partition(":")
    loaded = import_module(module)
    return getattr(loaded, name) if name else loaded
