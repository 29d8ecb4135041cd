"""Audit of classifiers: to what is each invariant, on which classes is it not, does size matter?

    python -m experiments.audit --model=a.keras,b.keras --data=DIR|NAME|FILE.npz --output_dir=OUT

Writes `report.html` for people, `audit.json` and `audit.csv` for programs, and pictures. The same
command continues an interrupted audit, also inside a model.

Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import keras_git as kg
from experiments import command_line
from experiments.command_line import option
from experiments.generator_training import load_generator
from experiments.progress import Progress
from experiments.results_folder import ResultsFolder, to_json
from keras_git.auditing import AuditResult, join_results, load_classifier, open_data
from keras_git.auditing.classifier import OUTPUTS, PREPROCESSING, input_shape, one_line
from keras_git.auditing.conditions import DEFAULTS
from keras_git.auditing.data import SPLITS, LabelledImages
from keras_git.errors import InputError


@dataclass(frozen=True)
class Config:
    """Settings of an audit; each is a flag of the same name."""

    model: tuple[str, ...] = option((), "Files of Keras classifiers (.keras), separated by commas.")
    names: tuple[str, ...] = option((), "Names of the models; default: those of the files.")
    import_module: tuple[str, ...] = option(
        (), "Python modules to import first, for models with registered layers of their own."
    )
    preprocess: tuple[str, ...] = option(
        ("none",),
        f"What a model wants in place of grey levels 0..255: {', '.join(PREPROCESSING)}; one for "
        "all models, or one each.",
    )
    outputs: tuple[str, ...] = option(
        ("auto",), f"What a model gives: {', '.join(OUTPUTS)}; one for all models, or one each."
    )
    resize: bool = option(False, "Resize images to what a model takes.")

    data: str = option(
        "", "Folder with one sub-folder per class, .npz file, or dataset of tensorflow_datasets."
    )
    data_dir: str | None = option(None, "Folder of tensorflow_datasets, or of the .npz file.")
    split: str = option(
        "test",
        "Which split, if the data have several; a folder without test/ gives val/ for test.",
        SPLITS,
    )
    images_per_class: int | None = option(
        None, "Use the first images of each class only; default: all."
    )
    class_counts: str | None = option(
        None,
        "Training images per class: numbers separated by commas, or a JSON file with a list or "
        "with an entry class_counts (such as config.json of a run). Default: of the data.",
    )

    transforms: tuple[str, ...] = option(
        (),
        "Transformations, as name or name:strength:strength; default: all that suit the images. "
        f"Known are {', '.join(kg.transforms.LADDERS)}.",
    )
    generator: str | None = option(
        None, "Trained generator (.keras), one transformation more than --transforms."
    )
    num_samples: int = option(10, "Draws per image; with --precision, those of a trial.")
    precision: float | None = option(
        None, "As many draws as bring the sampling error of each class's eKLD to this, nats."
    )
    max_samples: int = option(100, "Most draws per image under --precision, beside the trial.")
    batch_size: int = option(250, "Images per call.")
    seed: int = option(0, "Seed of the draws.")
    examples: int = option(8, "Most pictures of changed predictions per model.")
    output_dir: str = option("", "Folder of the results.")


def _model_names(config: Config) -> list[str]:
    """A name for each model, unique."""
    if config.names:
        if len(config.names) != len(config.model) or len(set(config.names)) < len(config.names):
            raise InputError(
                f"--names={','.join(config.names)}: give a different name to each of the "
                f"{len(config.model)} models"
            )
        return list(config.names)
    stems = [Path(model).stem for model in config.model]
    if len(set(stems)) < len(stems):  # classifier.keras of several runs
        stems = [f"{Path(model).parent.name}/{Path(model).stem}" for model in config.model]
    if len(set(stems)) < len(stems):
        raise InputError("--model: these files have the same names; tell them apart with --names")
    return stems


def _per_model(flag: str, values: Sequence[str], known: Sequence[str], number: int) -> list[str]:
    for value in values:
        if value not in known:
            raise InputError(f"--{flag}={value}: use one of {', '.join(known)}")
    if len(values) not in (1, number):
        raise InputError(f"--{flag}: give one for all models, or one for each of the {number}")
    return [*values] * (number if len(values) == 1 else 1)


def _class_counts(text: str | None) -> np.ndarray | None:
    """Numbers from a flag: written out, or in a JSON file."""
    if text is None:
        return None
    try:
        if Path(text).is_file():
            content = json.loads(Path(text).read_text("utf-8"))
            return np.array(content["class_counts"] if isinstance(content, dict) else content)
        return np.array([int(number) for number in text.split(",")])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--class_counts={text}: give whole numbers separated by commas, or a JSON file with a "
            "list or an entry class_counts"
        ) from error


def checked(config: Config) -> Config:
    """Checks what can be checked without data.

    Raises:
        InputError: a value that cannot work.
    """
    if not config.model:
        raise InputError("--model: name at least one .keras file")
    if not config.data:
        raise InputError("--data: name a folder, an .npz file or a dataset")
    if not config.output_dir:
        raise InputError("--output_dir: name a folder for the results")
    for module in config.import_module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the module does when it is run
            raise InputError(f"--import_module={module}: {one_line(error)}") from error
    return config


def run(config: Config) -> AuditResult:
    """Audits, or finishes an audit, and returns all of it.

    Raises:
        InputError: bad settings, models, data or output folder.
    """
    config = checked(config)
    names = _model_names(config)
    number = len(names)
    preprocess = _per_model("preprocess", config.preprocess, PREPROCESSING, number)
    outputs = _per_model("outputs", config.outputs, OUTPUTS, number)
    class_counts = _class_counts(config.class_counts)
    models = [load_classifier(path) for path in config.model]

    settings = dataclasses.asdict(config)
    for name in ("output_dir", "data_dir", "import_module", "names", "batch_size"):
        del settings[name]  # where things are decides no result
    settings["model"] = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for name, path in zip(names, config.model, strict=True)
    }
    if config.generator:
        if not Path(config.generator).is_file():
            raise InputError(f"--generator={config.generator}: no such file")
        settings["generator"] = hashlib.sha256(Path(config.generator).read_bytes()).hexdigest()
    settings["class_counts"] = class_counts
    with ResultsFolder(config.output_dir, settings) as folder:
        stored = folder.path / "audit.json"
        result = AuditResult.from_json(stored) if stored.exists() else None
        if result is not None and set(names) == {model.name for model in result.models}:
            logging.info("finished before; the report is written anew")
            _finish(result, folder)
            return result
        source = open_data(
            config.data,
            split=config.split,
            data_dir=config.data_dir,
            cache_dir=folder.checkpoints,
            wanted=next((shape for m in models if (shape := input_shape(m))), None),
        )
        transforms = _transforms(config, source)
        facts = {"data": source.name, "content_hash": source.content_hash()}
        if result is not None:
            folder.write_config(**facts)  # the same data as before?
        for index, name in enumerate(names):
            if result is not None and name in [model.name for model in result.models]:
                logging.info("%s: finished before", name)
                continue
            # What decides the result names the file: after a change, another one is begun
            decisive = {
                **settings,
                **facts,
                "model": settings["model"][name],
                "preprocess": preprocess[index],
                "outputs": outputs[index],
            }
            digest = hashlib.sha256(to_json(decisive).encode()).hexdigest()[:16]
            with Progress(f"audit of {name}", 1) as progress:
                found = kg.audit(
                    models[index],
                    source,
                    transforms,
                    class_counts=class_counts,
                    preprocess=preprocess[index],
                    outputs=outputs[index],
                    num_samples=config.num_samples,
                    precision=config.precision,
                    max_samples=config.max_samples,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    names=[name],
                    images_per_class=config.images_per_class,
                    progress=progress.show,
                    resize=config.resize or None,
                    num_examples=config.examples,
                    checkpoint=folder.checkpoints / f"audit_{digest}.npz",
                )
            result = found if result is None else join_results([result, found])
            # Only now: settings that the audit refuses must not tie the folder to themselves
            folder.write_config(**facts)
            result.to_json(stored)
        if result is None:
            raise InputError("--model: name at least one .keras file")
        _finish(result, folder)
    return result


def _transforms(config: Config, source: LabelledImages) -> Any:
    """What `kg.audit` is to measure; None for all ladders."""
    chosen: list[Any] = list(config.transforms)
    if config.generator:
        generator = load_generator(config.generator, source.sample(1).shape[1:])
        chosen = chosen or [DEFAULTS]
        chosen.append(kg.transforms.GeneratorTransform(generator))
    return chosen or None


def _finish(result: AuditResult, folder: ResultsFolder) -> None:
    """Table, report and pictures, all made from the stored result."""
    result.to_csv(folder.path / "audit.csv")
    result.to_html(folder.path / "report.html")
    result.plot(folder.pictures)
    folder.clean_up()
    for model in result.models:
        print(
            f"{model.name}: accuracy {100 * model.accuracy:.1f} %, balanced "
            f"{100 * model.balanced_accuracy:.1f} %; {model.evaluations} evaluations"
            + (f", {model.evaluations_saved} saved" if model.evaluations_saved > 0 else "")
        )
        for measurement in model.measurements:
            seen = ~np.isnan(measurement.ekld)
            print(
                f"  {measurement.condition.label:<60} eKLD {measurement.ekld[seen].mean():8.4f}  "
                f"trend {measurement.trend.rho:+.2f} (p = {measurement.trend.p_value:.3f})"
            )
    print(f"report: {folder.path / 'report.html'}")


if __name__ == "__main__":
    command_line.main(Config, run)
