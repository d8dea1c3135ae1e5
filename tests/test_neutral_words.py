"""Files for every modality say "example": what knows an image, a text or a recording stands in a folder of its own."""

import re

import pytest

from tests.test_architecture import HOME

MODALITIES = {"vision", "text", "audio"}  # folders of what knows a modality, in any package
WORDS = re.compile(
    r"(?<![a-z])(?:images?|pictures?|photos?|photographs?|recordings?|waveforms?|spectrograms?)(?![a-z])", re.IGNORECASE
)
# Files about images alone: commands that look at pixels, programs that take them, and what draws with PIL.
OF_IMAGES = {
    "_moved.py", "export/image_form.py", "export/recording_form.py", "losses/pretraining/mae.py", "report/attention.py",
    "report/figures.py", "training/callbacks/figures.py", "training/callbacks/projector.py",
    "audit/annotation_checks.py",
    "audit/box_checks.py",
    "audit/image_checks.py",
    "audit/mask_checks.py",
    "audit/recording_checks.py",
    "report/pixel_evaluation.py", "report/pixels.py", "solver/box_delivery.py", "solver/mask_delivery.py",
    "detection/base.py", "detection/build.py", "detection/faster_rcnn.py", "detection/matching.py",
    "detection/pyramid.py", "detection/fcos.py", "detection/retinanet.py", "detection/ssdlite.py", "detection/dense.py",
    "export/detector.py", "export/detector_card.py", "report/boxes.py",
    "tasks/boundary_f1.py", "tasks/segmentation.py", "tasks/segmentation_metrics.py",
}  # fmt: skip
# Shapes that documentation gives as an example, and the former name of `input_spec`.
EVERYWHERE = (
    "such as images in [0, 1], (B, C, H, W)", "such as float32 images in [0, 1], (B, C, H, W)",
    "such as uint8 images of shape (B, C, H, W)", "(C, H, W) of images", "such as `image`", "image_shape",
)  # fmt: skip
# What else stands in files for every modality: names of settings and of the parts of files of earlier versions, the
# choice of what belongs to images, and sentences that only images get.
KEPT: dict[str, tuple[str, ...]] = {
    "classifiers/nearest_class_mean.py": ("Distance-Based Image Classification",),
    "cli/commands.py": (
        "my_images/", "image_size 64", "folder holds images", "its own images, those of class folders",
    ),
    "cli/dispatch.py": ("settings of data mean those of images",),
    "cli/setting_groups.py": ("on_bad_image", '"Images": ("image_size"', "on_bad_recording"),
    "cli/lightning_cli.py": ('"waveform"', "its tokens or waveforms"),
    "data/batches.py": ("Rectangles of images that", "Images or what was computed for", "outside of the image"),
    "data/bad_examples.py": ("skipped_images.txt",),
    "data/class_folders.py": ("archive|images",),
    "data/issues.py": ("# Content of images", "# images of one color", "# images that"),
    "data/modality.py": ("images in [0, 1], (B, C, H, W), or a text for each",),
    "data/source.py": ("def images(self)", '"Examples.images"'),
    "data/split_names.py": ("test_images", "images?|", "photos?|pictures?|"),
    "data/storage.py": ("such as uint8 (N, C, H, W) of images", "384 images of 3 x 224 x 224"),
    "data/column_names.py": ('"image",',),
    "export/export.py": ("takes uint8 images", "tokens of texts or waveforms"),
    "losses/unlabeled/virtual_adversarial.py": ("an image with pixels in [0, 1]",),
    "networks/encoder.py": ("as local crops of an image are", "Of images, their shape", 'modality == "image"'),
    "networks/metadata.py": ('["modality"] != "image"',),
    "networks/resampling.py": ("net.image_size",),
    "paradigms/autoencoder.py": ("(any image size)",),
    "paradigms/base.py": ("Shape (C, H, W) of the images", 'modality == "image"'),
    "report/preview.py": ("draw_image_rows", "Image.fromarray", "add_image"),
    "runs/trained_network.py": ("of images also `mean` and `std`",),
    "selection/label.py": (
        "pixels of an image", "Side of image files", "Return an image", '["image"]', 'f"image/', "`image`", '"image"',
        "on_bad_image", "on_bad_recording", "image = Image.fromarray", "image.size", "image.save",
    ),
    "selection/label_server.py": ("(`image`", '"image/"'),
    "selection/select.py": ("on_bad_image", "on_bad_recording", "image_size", "Side of the images in pixels"),
    "solver/labels.py": (
        "image_size", "larger images", "the images that the user", "Side of the images",
    ),
    "solver/look.py": ("compute_image_stats",),
    "solver/map_starts.py": ("image_size",),
    "solver/map_trials.py": ("image_size",),
    "solver/solve.py": ("image_size", "Side of the images in pixels", "image files square", "in images of more than 8"),
    "solver/starts.py": (
        "image_size", "may see smaller images",
        "a source's images", "takes images of other sizes", "take images of any size", "that of images",
    ),
    "solver/trainings.py": ("image_size", "Side of the images", "images are too small", "with smaller images"),
    "solver/trials.py": ("image_size",),
    "study/inputs.py": ('"images": contents',),
    "study/stale.py": ('"images": "examples"', "`images` in the files"),
    "transfer/candidates.py": (
        "image_size", "its images in pixels", "the images that the user", "square images", "for images of",
    ),
    "transfer/rank.py": (
        "image_size", "images of its size", "images of their own", "other images", "compared on images of",
    ),
    "transfer/vectors.py": ("images are shrunk to 32 pixels", 'modality == "image"', "shrink_images"),
    "utils/html.py": ("render_image", '"image"'),
    "utils/inputs.py": (
        "such as images (B, C, H, W)", "such as `images`",
        "`1 image` or `2,000 images`", "of an image", '"image", shape', "(channels, height, width) of images",
    ),
}  # fmt: skip
NEUTRAL = sorted(
    path.relative_to(HOME).as_posix()
    for path in HOME.rglob("*.py")
    if not MODALITIES & {*path.relative_to(HOME).with_suffix("").parts}
    and path.relative_to(HOME).as_posix() not in OF_IMAGES
)


def find_words(text: str, kept: tuple[str, ...]) -> list[str]:
    """Return the lines that name examples of one modality, imports aside."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        for phrase in kept:
            rest = rest.replace(phrase, "")
        if WORDS.search(rest) and not line.lstrip().startswith(("from ", "import ")):
            lines.append(f"{number}: {line.strip()}")
    return lines


def test_files_for_every_modality_name_none() -> None:
    found = {
        file: lines
        for file in NEUTRAL
        if (lines := find_words((HOME / file).read_text(encoding="utf-8"), (*KEPT.get(file, ()), *EVERYWHERE)))
    }
    assert not found


@pytest.mark.parametrize("file", KEPT)
def test_what_is_kept_is_still_there(file: str) -> None:
    assert file in NEUTRAL
    text = (HOME / file).read_text(encoding="utf-8")
    assert [phrase for phrase in KEPT[file] if phrase not in text] == []


@pytest.mark.parametrize(
    "line", ['"""Return an image."""', 'raise InputError("no images")', "image_count = 1", "# a photo"]
)
def test_a_word_is_found_in_strings_names_and_comments(line: str) -> None:
    assert find_words(line, EVERYWHERE) == [f"1: {line}"]
    assert find_words("data: ImageDataModule  # weights of ImageNet, imagine", ()) == []
