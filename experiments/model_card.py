"""The page that goes with an exported classifier: what it was made of, what it can do and not."""

from __future__ import annotations

import dataclasses
import html
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import keras_git as kg
from experiments.summary import THIRDS

_LISTED_CLASSES = 30

_USE = """```python
import json

import keras
import numpy as np
from PIL import Image

model = keras.models.load_model("model.keras")
class_names = json.load(open("class_names.json"))
image = np.asarray(Image.open("image.jpg").convert("RGB"))  # uint8, any size
probabilities = model.predict(image[None])[0]
print(class_names[probabilities.argmax()], probabilities.max())
```"""


def escaped(text: str) -> str:
    """Text as it is in Markdown: no HTML, no markup, one line."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def command(config: Any, module: str) -> str:
    """The command line that gives this configuration."""
    words = ["python", "-m", module]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else f"--no{field.name}")
        elif isinstance(value, tuple):
            words.append(f"--{field.name}={','.join(map(str, value))}")
        else:
            words.append(f"--{field.name}={value}")
    return shlex.join(words)


def model_card(
    given: Any,
    config: Any,
    results: Mapping[str, Any],
    images: kg.data.ImageFolder,
    splits: kg.data.Splits,
    versions: Mapping[str, str],
) -> str:
    """The model card as Markdown.

    Args:
        given: settings as on the command line.
        config: the same, with what was chosen for the data.
        results: content of `results.json`, with its entry `export`.
        images: the folder as it was read.
        splits: what was trained and tested on.
        versions: of the software that trained the model.
    """
    export, train, test = results["export"], splits.train, splits.test
    chosen = results["methods"][export["method"]]["seeds"][str(export["seed"])]
    height, width, channels = train.image_shape
    named = _by_validation(export) if export["validation"] else "It is the last method named."
    parts = [
        f"# Image classifier: {escaped(train.name)}",
        f"A {config.architecture} for {train.num_classes} classes, trained with the method "
        f"`{export['method']}`, seed {export['seed']}. {named} The weights are those after the "
        "last epoch.",
        "## Use",
        f"Input: uint8 images (N, H, W, 3), 0..255, of any size; the model stretches them to "
        f"{height} x {width} pixels itself{', makes them grey' if channels == 1 else ''} and gives "
        f"probabilities (N, {train.num_classes}). Keras is all it needs.",
        _USE,
        "## Intended use",
        "Sorting images of the same kind, from the same source, into the classes below. "
        "Images of other things get one of these classes as well, with a probability that means "
        "nothing. Decisions about people need more evidence than this page gives.",
        "## Data",
        _data(config, images, splits),
        "## Class sizes and accuracy",
        _classes(train, test, chosen),
        "## Results on the test images",
        _table(
            ["measure", "value"],
            [
                ["accuracy", _percent(chosen["test_accuracy"])],
                ["balanced accuracy (mean over classes)", _percent(chosen["balanced_accuracy"])],
                *(
                    [f"accuracy, {name}", _percent(chosen[f"{key}_accuracy"])]
                    for key, name in (
                        ("many", "classes of more than 100 training images"),
                        ("medium", "classes of 20 to 100"),
                        ("few", "classes of fewer than 20"),
                        ("head", "largest third of the classes"),
                        ("middle", "middle third"),
                        ("tail", "smallest third"),
                    )
                ),
                ["expected calibration error", _nats(chosen["expected_calibration_error"])],
            ],
        ),
        "All methods of the run, balanced accuracy:",
        _table(
            ["method", "all classes", "largest third", "middle third", "smallest third"],
            [
                [
                    f"`{key}`",
                    *(
                        _percent(entry["mean"][f"{name}_accuracy"])
                        for name in ("balanced", *THIRDS)
                    ),
                ]
                for key, entry in results["methods"].items()
            ],
        ),
        "## Invariance",
        _invariance(chosen),
        "## Limits",
        _limits(export, test),
        "## How it was made",
        f"```sh\n{command(given, 'experiments.image_folder_lt')}\n```",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _by_validation(export: Mapping[str, Any]) -> str:
    scores = ", ".join(
        f"`{name}` {_percent(score['balanced_accuracy'])}"
        for name, score in export["validation"].items()
    )
    return f"It has the best balanced accuracy on the validation images ({scores})."


def _data(config: Any, images: kg.data.ImageFolder, splits: kg.data.Splits) -> str:
    numbers = [f"{len(splits.train)} training", f"{len(splits.test)} test"]
    if splits.validation is not None:
        numbers.append(f"{len(splits.validation)} validation")
    text = f"The folder {escaped(splits.train.name)}: {', '.join(numbers)} images."
    if len(splits.train) < len(images.splits.train):
        cut = "for a test run" if config.profile == "as_is" else f"to the profile {config.profile}"
        counts = splits.train.class_counts
        text += (
            f" The training images are a part of {len(images.splits.train)}: the classes were cut "
            f"{cut}, to {counts.max()} to {counts.min()} images."
        )
    if config.group_regex:
        text += (
            f" Images of one group ({escaped(config.group_regex)}) are all in one of these parts."
        )
    if images.unreadable:
        text += f" {len(images.unreadable)} files could not be read and were left out."
    return text


def _classes(train: kg.data.ImageDataset, test: kg.data.ImageDataset, chosen: Any) -> str:
    order = sorted(range(train.num_classes), key=lambda c: -train.class_counts[c])
    text = ""
    if len(order) > _LISTED_CLASSES:
        half = _LISTED_CLASSES // 2
        text = f"\n\nThe {half} largest and the {half} smallest of {len(order)} classes."
        order = order[:half] + order[-half:]
    rows = [
        [
            escaped(train.class_names[c]),
            str(train.class_counts[c]),
            str(test.class_counts[c]),
            _percent(chosen["per_class_accuracy"][c]),
        ]
        for c in order
    ]
    return _table(["class", "training images", "test images", "accuracy"], rows) + text


def _invariance(chosen: Mapping[str, Any]) -> str:
    if not chosen["invariance"]:
        return "Not measured."
    rows = [
        [name, *(_nats(measured[f"{third}_ekld"]) for third in THIRDS)]
        for name, measured in chosen["invariance"].items()
    ]
    return (
        "Expected KL divergence (eKLD, nats) between the predictions for an image and for its "
        "transformed versions; 0: the prediction never changes. Means over the classes.\n\n"
        + _table(["transformation", "largest third", "middle third", "smallest third"], rows)
    )


def _limits(export: Mapping[str, Any], test: kg.data.ImageDataset) -> str:
    original = export["original_files"]
    few = int((test.class_counts < 10).sum())
    lines = [
        f"- {few} of {test.num_classes} classes have fewer than 10 test images; their accuracy is "
        "a rough number.",
        "- Images are stretched to one size: the aspect ratio is not kept. Transparent parts must "
        "be put on white, and the orientation in EXIF applied, before the model sees an image.",
        f"- Training images were resized by Pillow, the model resizes by itself: on "
        f"{original['files']} test files in their own sizes it made the same prediction for "
        f"{_percent(original['same_prediction'])}; a probability differed by up to "
        f"{original['largest_difference_of_a_probability']:.3f}.",
    ]
    return "\n".join(lines)
