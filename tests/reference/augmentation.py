"""Families of augmentation and its parts: subpolicy_ops, crops, learned_crop, foreground."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from keras import ops

from keras_git.analysis import crops, foreground, learned_crop
from keras_git.transforms import policy_operations as policy
from keras_git.transforms import policy_transform
from tests.reference.gradients import gradients_of
from tests.reference.registry import Arrays, Check, Skip

_EXACT = ("translateX", "translateY", "rotate", "posterize", "solarize", "invert", "equalize")
_NEAR_TIE = 1e-4


def _operation(image: np.ndarray, operation: str, values: np.ndarray) -> np.ndarray:
    """One image under several values of an operation."""
    parameters = policy.operation_parameters(operation, values)
    images = ops.convert_to_tensor(np.repeat(image[None], len(values), axis=0).astype("float32"))
    family = policy.FAMILIES[operation]
    return ops.convert_to_numpy(policy.apply_family(family, images, parameters))


def _ties(operation: str, value: float, shape: tuple[int, ...]) -> np.ndarray:
    """Where rounding decides which pixel is taken: rescaling onto pixel borders, shear onto the
    border of the image."""
    y, x = np.indices(shape[:2]) + 0.5
    height, width = shape[:2]
    if operation == "rescale":
        x, y = ((c - n / 2) / value + n / 2 for c, n in ((x, width), (y, height)))
        return (np.abs(x - np.round(x)) < _NEAR_TIE) | (np.abs(y - np.round(y)) < _NEAR_TIE)
    place, side = (x + value * y, width) if operation == "shearX" else (y + value * x, height)
    return (np.abs(place) < _NEAR_TIE) | (np.abs(place - side) < _NEAR_TIE)


def subpolicy_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Operations on 8-bit images, sub-policies, and the names and values of the candidates."""
    del config
    image, names = arrays["image"], [str(name) for name in arrays["op_names"]]
    cases, expected = arrays["case_op_index_sign"], arrays.peek("output")
    values = np.array([policy.operation_value(names[o], int(i)) for o, i, _ in cases])
    factors = arrays["rescale_factor_by_index"]
    given = np.array(
        [i if names[o] == "rescale" else v for (o, i, _), v in zip(cases, values, strict=True)]
    )
    yield Check("case_value", given, "rel_each", 1e-6)
    yield Check("rescale_factor_by_index", policy.VALUES["rescale"], "rel_each", 1e-6)
    assert len(factors) == policy.MAGNITUDES

    output = np.empty_like(expected)
    for number, operation in enumerate(names):
        chosen = cases[:, 0] == number
        signed = values[chosen] * cases[chosen, 2]
        ours = _operation(image, operation, signed)
        theirs = expected[chosen]
        if operation in ("rescale", "shearX", "shearY"):
            ties = np.stack([_ties(operation, value, image.shape) for value in signed])
            ours = np.where(ties[..., None], theirs, ours)
        # One level is allowed where theirs computes with tables of integers; else none is.
        weight = 2.0 if operation in (*_EXACT, "rescale") else 1.0
        output[chosen] = theirs + weight * (ours - theirs)
    yield Check("output", output, "abs", 1.0)

    composed = []
    for name in arrays["composed_names"]:
        transform = policy_transform(str(name), sign=1)
        made = transform(image[None])
        composed.append(np.transpose(ops.convert_to_numpy(made)[0], (2, 0, 1)) / 255.0)
    # Sheared and blended levels may differ by one, and then what follows, at single pixels.
    yield Check("composed_output01_sign_plus", np.stack(composed), "quantile", 1.001 / 255)

    singles = [str(name) for name in arrays["search_single_names"]]
    _same(singles, [policy.policy_name(part) for part in policy.SINGLES])
    pairs = [str(name) for name in arrays["search_subpolicy_names"]]
    _same(pairs, [policy.policy_name(*pair) for pair in policy.SUBPOLICIES])
    listed = []
    for name in singles:
        ((operation, magnitude, _),) = policy.policy_parts(name)
        value = policy.operation_value(operation, magnitude)
        listed.append(magnitude if operation == "rescale" else value)
    yield Check("search_single_values", np.array(listed), "rel_each", 1e-6)


def _same(theirs: list[str], ours: list[str]) -> None:
    """Names are no numbers: the same set, in whatever order."""
    if sorted(theirs) != sorted(ours):
        different = set(ours) ^ set(theirs)
        raise ValueError(f"other candidates: {sorted(different)[:5]}")


_CROPS = {
    "centre_area": ("area", True),
    "centre_inverse": ("linear_zoom", True),
    "exponential": ("exponential", False),
    "beta": ("beta", False),
}


def crops_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Sizes and places of crops from recorded draws, and translation followed by a crop."""
    del config
    for kind, (law, centred) in _CROPS.items():
        if f"{kind}_hw" not in arrays:
            continue
        height, width = arrays[f"{kind}_hw"].astype(np.float64).T
        draws = arrays[f"{kind}_size_draws"].astype(np.float64)
        fractions = crops.fraction_of(draws, law)
        aspects = arrays[f"{kind}_log_aspect_draws"].astype(np.float64)
        h, w, attempts, found = crops.crop_sizes(fractions, aspects, height, width)
        if centred:
            i, j = np.floor((height - h) / 2), np.floor((width - w) / 2)
        else:
            d0, d1 = arrays[f"{kind}_offset_draws_mod"].astype(np.int64).T
            i = np.where(found, d0 % (height - h + 1), np.floor((height - h) / 2))
            j = np.where(found, d1 % (width - w + 1), np.floor((width - w) / 2))
        box = np.stack([i, j, h, w], axis=-1)
        yield Check(f"{kind}_attempts", attempts, "exact")
        yield Check(f"{kind}_box_ijhw", box, "exact")
        theta = crops.crop_theta(box, height, width)
        yield Check(f"{kind}_theta_align_corners_false", theta, "abs", 1e-5)

    image = np.moveaxis(arrays["ts_image"], 0, -1)
    height, width = image.shape[:2]
    fraction, unit = arrays["ts_fraction"], arrays["ts_unit_draws_xy"]
    shift = np.round(unit * fraction[:, None] * np.array([width, height]))
    yield Check("ts_translation_xy", shift, "exact")
    area = arrays["ts_area_fraction"].astype(np.float64)[:, None]
    h, w, *_ = crops.crop_sizes(area, np.zeros_like(area), height, width, (1.0, 1.0))
    box = np.stack([np.floor((height - h) / 2), np.floor((width - w) / 2), h, w], axis=-1)
    yield Check("ts_box_ijhw", box, "exact")
    side = arrays.peek("ts_output_no_antialias").shape[-1]
    layer = crops.crop_decomposition(side, "TSnoAR", shorter_side=side)
    images = np.repeat(image[None], len(shift), axis=0)
    parameters = {"box": box, "shift": shift, "flip": np.zeros(len(shift))}
    made = ops.convert_to_numpy(layer.transform(images, parameters))
    yield Check("ts_output_no_antialias", np.moveaxis(made, -1, 1), "abs", 1e-4)
    yield Skip(
        "ts_output_antialias", "no mode smooths here, so that modes differ in the crop alone"
    )


_TAGS = {
    "joint6": {"sequential": False, "one_sided_scale": False},
    "joint3": {"sequential": False, "one_sided_scale": False},
    "joint3min": {"sequential": False, "one_sided_scale": False},
    "sequential_crop": {"sequential": True, "one_sided_scale": True},
    "sequential_min": {"sequential": True, "one_sided_scale": False},
}


def _stepwise(layer: learned_crop.LearnedCrop, images: np.ndarray, maps: object) -> np.ndarray:
    """One interpolation per map, as theirs."""
    for step in range(maps.shape[1]):
        images = layer.transform(images, maps[:, step : step + 1])
    return np.moveaxis(ops.convert_to_numpy(images), -1, 1)


def learned_crop_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Widths, maps and images of learned crops; their loss; the mean of several copies."""
    del config
    images = np.moveaxis(arrays["image"], 1, -1)
    for tag, options in _TAGS.items():
        if f"{tag}_raw_width" not in arrays:
            continue
        raw, minimum = arrays[f"{tag}_raw_width"], None
        if f"{tag}_min_values" in arrays:
            minimum = arrays[f"{tag}_min_values"].tolist()
        layer = learned_crop.LearnedCrop(raw.tolist(), min_width=minimum, **options)
        free = learned_crop.LearnedCrop(raw.tolist(), **options)
        softplus = ops.convert_to_numpy(free.current_widths())
        yield Check(f"{tag}_softplus_width", softplus, "rel_each", 1e-5)
        uniform = ops.convert_to_tensor(arrays[f"{tag}_unit_draws"])
        coefficients = layer.coefficients(uniform)
        maps = layer.matrices(coefficients)
        yield Check(f"{tag}_generator_sum", _sums(layer, coefficients), "abs", 1e-5)
        yield Check(f"{tag}_expm_exact", ops.convert_to_numpy(maps), "abs", 2e-5)
        yield Check(f"{tag}_output_exact", _stepwise(layer, images, maps), "abs", 5e-4)
        largest = layer.matrices(layer.coefficients(ops.ones_like(uniform)))
        made = _stepwise(layer, images, largest)
        yield Check(f"{tag}_output_at_u_equal_1_exact", made, "abs", 5e-4)
        for name in ("expm", "output"):
            yield Skip(f"{tag}_{name}_reference_ode", "their solver; exact values are compared")
    yield from _loss(arrays)
    logits = ops.convert_to_tensor(arrays["average_copy_logits"])
    mean = ops.convert_to_numpy(learned_crop.averaged_log_probabilities(logits))
    yield Check("average_output", mean, "abs", 1e-5)
    labels = arrays["loss_labels"][: len(mean)]
    yield Check("average_cross_entropy_as_logits", _cross_entropy(mean, labels), "abs", 1e-5)


def _sums(layer: learned_crop.LearnedCrop, coefficients: object) -> np.ndarray:
    values = ops.convert_to_numpy(coefficients)
    generators = np.array([learned_crop.GENERATORS[name] for name in layer.components], float)
    steps = values[:, :, None, None] * generators
    return steps if layer.sequential else steps.sum(axis=1, keepdims=True)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.float64(-log_probabilities[np.arange(len(labels)), labels].mean())


def _loss(arrays: Arrays) -> Iterator[Check]:
    entropy = _cross_entropy(arrays["loss_logits"], arrays["loss_labels"])
    yield Check("loss_cross_entropy", entropy, "abs", 1e-5)
    raw, cutoffs, weights = (arrays[f"loss_{name}"] for name in ("raw_width", "shutoff", "reg"))
    values: dict[str, list[float]] = {kind: [] for kind in learned_crop.REGULARISERS}
    slopes = []
    for row, cutoff, weight in zip(raw, cutoffs, weights, strict=True):
        layer = learned_crop.LearnedCrop(row.tolist(), learning_rate_factor=1.0)
        for kind in learned_crop.REGULARISERS:
            limit = cutoff if kind == "per_component" else 10.0
            found = layer.regulariser(float(weight), limit, kind)
            values[kind].append(entropy + float(ops.convert_to_numpy(found)))
        slopes.append(
            gradients_of(lambda x=layer, c=cutoff, r=weight: x.regulariser(float(r), c), layer)
        )
    for kind, found in values.items():
        name = "no_shutoff" if kind == "none" else kind
        yield Check(f"loss_value_{name}", np.array(found), "rel_each", 1e-5)
    yield Check("loss_grad_raw_width_per_component", np.stack(slopes), "abs", 1e-5)


def _swapped(pairs: np.ndarray) -> np.ndarray:
    """From (x, y) to (row, column) or back."""
    return np.asarray(pairs)[:, ::-1]


def foreground_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Boxes, centres and areas of foregrounds, and their statistics per class."""
    del config
    images, labels = arrays["images"], arrays["labels"]
    size = images.shape[1:]
    boxes, valid = foreground.foreground_boxes(images, float(arrays["threshold"]))
    yield Check("valid", valid, "exact")
    yield Check("box_min_row_col", _swapped(boxes[:, :2]), "exact")
    yield Check("box_max_row_col", _swapped(boxes[:, 2:]), "exact")
    missing = np.where(valid, 0.0, np.nan)
    centres = _swapped(foreground.box_centres(boxes, size)) + missing[:, None]
    yield Check("centre_relative_row_col", centres, "abs", 1e-5)
    areas = foreground.box_areas(boxes, size, inclusive=False) + missing
    yield Check("area_relative", areas, "abs", 1e-5)
    yield Check("area_pixels_official", areas[valid] * np.prod(size), "rel", 1e-5)
    mass = _swapped(foreground.centre_of_mass(images))
    yield Check("centre_of_mass_row_col", mass, "abs", 1e-4)
    spread = [np.nanstd(mass[labels == c], axis=0) for c in arrays["class_ids"]]
    yield Check("centre_of_mass_std_row_col", np.stack(spread), "abs", 1e-4)

    corners = np.concatenate([_swapped(boxes[:, :2]), _swapped(boxes[:, 2:])], axis=1)
    measured = {
        "top_left_x": corners[:, 0],
        "top_left_y": corners[:, 1],
        "bottom_right_x": corners[:, 2],
        "bottom_right_y": corners[:, 3],
        "areas": areas * np.prod(size),
    }
    columns = []
    for name in arrays["summary_columns"]:
        measure, _, percent = str(name).rpartition("_")
        columns.append((measured[measure], float(percent.rstrip("%"))))
    summary = [
        [np.percentile(values[valid & (labels == c)], percent) for values, percent in columns]
        for c in arrays["summary_class_ids"]
    ]
    yield Check("summary_intended", np.array(summary), "rel", 1e-5)
    yield Skip("summary_official_buggy", "their quartiles are of single images")
    given = np.concatenate(
        [_swapped(arrays["given_min_row_col"]), _swapped(arrays["given_max_row_col"])], axis=1
    )
    found = foreground.box_centres(given, arrays["given_hw"])
    yield Check("given_centre_relative_row_col", _swapped(found), "abs", 1e-5)
    found = foreground.box_areas(given, arrays["given_hw"], inclusive=False)
    yield Check("given_area_relative", found, "abs", 1e-5)


FAMILIES = {
    "subpolicy_ops": subpolicy_family,
    "crops": crops_family,
    "learned_crop": learned_crop_family,
    "foreground": foreground_family,
}
