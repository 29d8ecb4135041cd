"""Families of factors of variation: measures, similarity search, transformations of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from keras import ops

from keras_git.analysis import official, similarity, transform_sets
from keras_git.analysis.equivariance import pair_cosines
from keras_git.analysis.intervals import jackknife_error
from keras_git.analysis.invariance import expected_invariance, ratio_with_left_out
from keras_git.analysis.variation import class_gains
from tests.reference.registry import Arrays, Check, Skip

# Between float32 embeddings and sums in float64
_SMALLEST_BASELINE = 1e-5
_METRICS = {"cos": "cosine", "l2": "l2"}


def _channels_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -3, -1)


def _scaled(key: str, ours: np.ndarray, expected: np.ndarray, tolerance: float) -> Check:
    """|a - b| / (1 + |b|), the error that the README states its tolerances in."""
    ours, expected = np.asarray(ours, float), expected.astype(float)
    if ours.shape != expected.shape:
        return Check(key, ours, "abs", tolerance)
    shown = expected + (ours - expected) / (1 + np.abs(expected))
    return Check(
        key, np.where(np.isnan(expected) & np.isnan(ours), expected, shown), "abs", tolerance
    )


def _invariance(arrays: Arrays, prefix: str, z: np.ndarray, zt: np.ndarray) -> Iterator[Check]:
    for short, metric in _METRICS.items():
        name = f"{prefix}{short}"
        permutations = arrays[f"{name}_perm"]
        found = [
            official.invariance(z, own, order, metric)
            for own, order in zip(zt, permutations, strict=True)
        ]
        baseline, own, invariance = (np.stack(part) for part in zip(*found, strict=True))
        expected = arrays.peek(f"{name}_invariance")
        yield _scaled(f"{name}_baseline", baseline, arrays.peek(f"{name}_baseline"), 2e-6)
        yield _scaled(f"{name}_transformed", own, arrays.peek(f"{name}_transformed"), 2e-6)
        compared = baseline > _SMALLEST_BASELINE
        values = np.where(compared, invariance, expected)
        yield _scaled(f"{name}_invariance", values, expected, 1e-3 if prefix else 1e-4)
        key = f"{name}_invariance_percentiles"
        if f"{key}_exact" in arrays:
            exact = np.percentile(invariance, arrays["percentiles"], axis=1).T
            yield _scaled(f"{key}_exact", exact, arrays.peek(f"{key}_exact"), 1e-4)
            yield Skip(f"{key}_tdigest", "an approximation, informational")


def _alignment(arrays: Arrays, prefix: str) -> Iterator[Check]:
    difference = arrays[f"{prefix}diff"].astype(np.float64)
    columns, rows = arrays[f"{prefix}column_perm"], arrays[f"{prefix}row_perm"]
    shuffled = [official.shuffled_columns(d, c) for d, c in zip(difference, columns, strict=True)]
    yield Check(f"{prefix}shuffled_diff", np.stack(shuffled), "abs", 1e-6)
    found = [official.alignment(d, c, r) for d, c, r in zip(difference, columns, rows, strict=True)]
    for name, values in zip(
        ("baseline_cos_distance", "displacement_cos_distance", "alignment"),
        zip(*found, strict=True),
        strict=True,
    ):
        key = f"{prefix}{name}"
        yield _scaled(key, np.stack(values), arrays.peek(key), 1e-5)
    exact = np.percentile(np.stack([f[2] for f in found]), arrays["percentiles"], axis=1).T
    key = f"{prefix}percentiles"
    yield _scaled(f"{key}_exact", exact, arrays.peek(f"{key}_exact"), 1e-5)
    yield Skip(f"{key}_tdigest", "an approximation, informational")


def measures_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Official invariance and alignment."""
    del config
    yield from _invariance(arrays, "", arrays["z"], arrays["zt"])
    yield from _invariance(arrays, "edge_", arrays["edge_z"], arrays["edge_zt"])
    yield from _alignment(arrays, "align_")
    yield from _alignment(arrays, "align_special_")


def invariance_gap_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Gap between trained and untrained, and the two bars."""
    del config
    invariance, names = arrays["invariance"], [str(n).lower() for n in arrays["model_names"]]
    arrays["transform_names"]
    first, last = (int(index) for index in arrays["magnitude_range"])
    counts = arrays["topk_counts"]
    for kind in ("vit", "resnet"):
        own = [i for i, name in enumerate(names) if kind in name and "w/o" not in name]
        trained = next(i for i in own if not names[i].startswith("untrained"))
        untrained = next(i for i in own if names[i].startswith("untrained"))
        gap = official.invariance_gap(
            invariance[trained].astype(float), invariance[untrained].astype(float), (first, last)
        )
        yield _scaled(f"gap_{kind}", gap, arrays.peek(f"gap_{kind}"), 1e-5)
        means, errors = official.gap_bars(gap, counts)
        for key, values in (("mean_decreases_increases", means), ("sem_over_mean", errors)):
            yield _scaled(f"bins_{kind}_{key}", values, arrays.peek(f"bins_{kind}_{key}"), 1e-5)


def similarity_search_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """The search as the original makes it: pairs, table, best candidates, classes compared."""
    del config
    z, zt = arrays["embeddings"], arrays["transformed_embeddings"]
    names = [str(name) for name in arrays["transform_names"]]
    labels = arrays["class_labels"]
    batch, most = (int(number) for number in arrays["batch_size_max_pairs"])
    pairs = official.pairs(z.shape[1], batch, most)
    yield Check("pair_indices", pairs, "exact")
    u, v = similarity.unit(z), similarity.unit(zt)
    i, j = pairs.T
    original = (u[:, i] * u[:, j]).sum(axis=-1)
    change = (u[:, None, i] * (v[:, :, j] - u[:, None, j])).sum(axis=-1)
    yield _scaled("similarity_original", original, arrays.peek("similarity_original"), 2e-6)
    yield _scaled("similarity_change", change, arrays.peek("similarity_change"), 2e-6)
    table = official.similarity_table(original, change)
    given = [str(name) for name in arrays["table_columns"]]
    table = table[..., [official.TABLE_COLUMNS.index(name) for name in given]]
    yield _scaled("table", table, arrays.peek("table"), 1e-4)
    table = official.similarity_table(original, change)

    for score in ("proportion_boosted", "avg_percent_similarity_change"):
        values = official.column(table, score)
        expected = arrays.peek(f"top_{score}_index")
        top = official.best(values, expected.shape[1])
        chosen = official.kept(top, table)
        yield Check(f"top_{score}_index", top, "exact")
        yield Check(f"kept_{score}_index", chosen, "exact")
        for rule in ("uniform", "fixed", "weighted_boost"):
            key = f"kept_{score}_prob_{rule}"
            yield Check(key, official.probabilities(chosen, table, rule), "abs", 1e-4)
        if f"across_{score}_index" in arrays:
            number = len(arrays.peek(f"across_{score}_index"))
            order, means = official.across_classes(values, names, number)
            yield Check(f"across_{score}_index", order, "exact")
            yield _scaled(
                f"across_{score}_value", means, arrays.peek(f"across_{score}_value"), 1e-4
            )
            whole = table.mean(axis=0)
            share = official.column(whole, "proportion_boosted")[order]
            good = order[share > 0.4 + 1e-9]
            padded = np.full(number, -1)
            padded[: len(good)] = good
            yield Check(f"across_kept_{score}_index", padded, "exact")

    percent = official.column(table, "avg_percent_similarity_change")
    for key in arrays:
        match = re.fullmatch(r"factor_iou_top(\d+)", key)
        if match:
            yield Check(key, official.factor_overlap(percent, names, int(match[1])), "abs", 1e-6)
    yield Check("factor_spearman", official.factor_spearman(percent, names), "abs", 1e-5)
    yield Check("rank_intended", official.ranks(percent), "exact")
    alphabetical = np.tile(official.alphabetical_ranks(names), (len(labels), 1))
    yield Check("rank_official_alphabetical", alphabetical, "exact")
    mapped = [official.invariance_name(name) for name in names]
    _same(arrays["directional_names_official"], mapped)
    lengths = arrays["summary_lengths"]
    mean, spread = official.summary(
        [own[:length] for own, length in zip(original, lengths, strict=True)]
    )
    yield Check("summary_mean_of_class_means", np.float64(mean), "abs", 1e-5)
    yield Check("summary_mean_of_class_stds", np.float64(spread), "abs", 1e-5)


def _same(given: np.ndarray, ours: list[str]) -> None:
    if [str(name) for name in given] != ours:
        raise ValueError(f"names are {ours}, expected {given.tolist()}")


def _applied(operation: str, magnitude: float, images: np.ndarray) -> np.ndarray:
    step = transform_sets.operation_step(operation, magnitude)
    numbers = {name: ops.convert_to_tensor(value) for name, value in step.numbers.items()}
    moved = step.function(ops.convert_to_tensor(images), numbers)
    return ops.convert_to_numpy(moved)


def tensor_transforms_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Magnitudes, affine maps with their matrices, photometric operations."""
    del config
    names = [str(name) for name in arrays["transform_names"]]
    magnitudes = [transform_sets.PAPER_MAGNITUDES[name] for name in names]
    yield Check("magnitudes", np.array(magnitudes), "abs", 1e-5)
    images = _channels_last(arrays["geo_image"])
    matrices, outputs = [], []
    for operation, magnitude in zip(arrays["geo_op"], arrays["geo_magnitude"], strict=True):
        step = transform_sets.operation_step(str(operation), float(magnitude))
        matrices.append(step.numbers["matrix"])
        outputs.append(np.moveaxis(_applied(str(operation), float(magnitude), images), -1, -3))
    key = "geo_output_to_input_matrix"
    yield _scaled(key, np.stack(matrices), arrays.peek(key), 1e-5)
    yield Check("geo_output", np.stack(outputs), "abs", 2e-4)
    for names_key, image_key, output_key in (
        ("photo_names", "photo_image01", "photo_output01"),
        ("photo_names_normalised", "photo_image_normalised", "photo_output_normalised"),
    ):
        image = _channels_last(arrays[image_key])
        made = [
            [
                np.moveaxis(_applied(str(name), magnitude, image), -1, -3)
                for magnitude in transform_sets.PAPER_MAGNITUDES[str(name)]
            ]
            for name in arrays[names_key]
        ]
        yield Check(output_key, np.array(made), "abs", 1e-5)


def pipeline_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """A small network end to end, the transformations on its normalized input."""
    del config
    images = _channels_last(arrays["images"])
    weight, bias = (arrays[name].astype(np.float64) for name in ("weight", "bias"))

    def embedded(batch: np.ndarray) -> np.ndarray:
        n, height, width, channels = batch.shape
        pooled = batch.reshape(n, height // 4, 4, width // 4, 4, channels).mean(axis=(2, 4))
        flat = pooled.transpose(0, 3, 1, 2).reshape(n, -1)
        return np.maximum(flat @ weight + bias, 0.0)

    z = embedded(images)
    yield _scaled("z", z, arrays.peek("z"), 1e-4)
    height, width = images.shape[1:3]
    candidates = transform_sets.TransformSet.paper_invariance((height, width))
    zt = []
    for operation in arrays["ops"]:
        own = [c for c in candidates if c.transform == str(operation)]
        zt.append([embedded(_applied(str(operation), c.magnitude, images)) for c in own])
    zt = np.array(zt)
    yield _scaled("zt", zt, arrays.peek("zt"), 1e-3)
    permutations = arrays["perm"]
    found = [
        [official.invariance(z, zt[o, m], permutations[o, m])[::2] for m in range(zt.shape[1])]
        for o in range(len(zt))
    ]
    baseline, invariance = (
        np.array([[cell[part] for cell in row] for row in found]) for part in (0, 1)
    )
    expected = arrays.peek("cos_invariance")
    values = np.where(baseline > 1e-4, invariance, expected)
    yield _scaled("cos_invariance", values, expected, 1e-2)
    usable = (baseline > 1e-4).all(axis=-1)
    medians = np.median(invariance, axis=-1)
    known = arrays.peek("cos_invariance_median")
    yield _scaled("cos_invariance_median", np.where(usable, medians, known), known, 1e-3)


def _companion(config: dict, family: str) -> dict[str, np.ndarray]:
    """The file of another family beside this one: of the same ending, else the plain one."""
    path = Path(config["path"])
    found = [
        path.with_name(path.name.replace("recommended", family, 1)),
        path.parent / f"{family}.npz",
    ]
    existing = next((one for one in found if one.exists()), None)
    if existing is None:
        raise ValueError(f"{path.name} needs {found[0].name} beside it, whose inputs it is about")
    with np.load(existing, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def recommended_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Closed forms on the inputs of measures.npz and similarity_search.npz beside the file."""
    measures, search = (_companion(config, name) for name in ("measures", "similarity_search"))
    z, zt = measures["z"], measures["zt"]
    each = np.stack([expected_invariance(z, own, "cosine")[2] for own in zt])
    key = "inv_expected_baseline_per_sample"
    yield _scaled(key, each, arrays.peek(key), 1e-4)
    key = "inv_expected_baseline_median"
    yield _scaled(key, np.median(each, axis=1), arrays.peek(key), 1e-4)
    ratios = [ratio_with_left_out(z, own, "cosine") for own in zt]
    yield _scaled(
        "inv_ratio_of_means",
        np.array([r[0] for r in ratios]),
        arrays.peek("inv_ratio_of_means"),
        1e-4,
    )
    key = "inv_ratio_of_means_jackknife_se"
    errors = np.array([jackknife_error(r[1]) for r in ratios])
    yield _scaled(key, errors, arrays.peek(key), 1e-4)
    differences = [*measures["align_diff"], *measures["align_special_diff"]]
    for key, power in (("align_mean_pair_cosine", 1), ("align_mean_pair_cosine_squared", 2)):
        values = np.array([pair_cosines(d, power)[0] for d in differences])
        yield _scaled(key, values, arrays.peek(key), 1e-4)

    z, zt = search["embeddings"], search["transformed_embeddings"]
    u, v = similarity.unit(z), similarity.unit(zt)
    number = u.shape[1]
    vectors = u.reshape(-1, u.shape[-1])
    labels = np.repeat(np.arange(len(u)), number)
    cells = []
    for place in range(v.shape[1]):
        moved = v[:, place].reshape(vectors.shape) - vectors
        cells.append(class_gains(vectors, moved, labels).classes)
    for key, name in (
        ("gain_mean", "gain"),
        ("gain_jackknife_se", "gain_error"),
        ("share_improved", "share"),
        ("share_improved_jackknife_se", "share_error"),
        ("between_class_gain", "control_gain"),
        ("net_gain", "net_gain"),
        ("relative_gain_ratio_of_means", "relative_gain"),
    ):
        values = np.array([[getattr(one, name) for one in cell] for cell in cells]).T
        yield _scaled(key, values, arrays.peek(key), 1e-4)


FAMILIES = {
    "measures": measures_family,
    "invariance_gap": invariance_gap_family,
    "similarity_search": similarity_search_family,
    "tensor_transforms": tensor_transforms_family,
    "pipeline": pipeline_family,
    "recommended": recommended_family,
}
