"""Networks from the weights of PyTorch programs; never from a pickle, which runs what it holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_git.errors import InputError
from keras_git.models.resnet import resnet
from keras_git.models.torch_parameters import resnet_parameters

_CONVERT = (
    "convert it where it was made: "
    'np.savez("weights.npz", **{k: v.cpu().numpy() for k, v in state_dict.items()})'
)
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".th", ".tar", ".bin", ".ckpt")


def import_torch_resnet(
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    name: str = "classifier",
) -> keras.Model:
    """A trained CIFAR ResNet of PyTorch as the network that `keras_git.models.resnet` makes.

    Of the public CIFAR ResNets with parameter-free shortcuts ("option A"), by their names: conv1,
    bn1, layer1.0.conv1, layer1.0.bn1, ..., linear. Depth, width, number of classes and head follow
    from the shapes: `linear.weight` (C, D) with `linear.bias` is the linear head, `linear.weight`
    (D, C) alone the cosine head of LDAM-DRW (whose factor belongs to the loss). Prefixes "module."
    of parallel training are dropped, as are the counters `num_batches_tracked`.

    Args:
        state_dict: names to arrays, or CPU or GPU tensors of PyTorch; it may be inside of a
            checkpoint under the name "state_dict". Or the path of a `.npz` or `.safetensors` file.
        input_shape: (height, width, channels) of the images.
        mean: Channel means in [0, 1] units that the program subtracted. With mean and std the
            network takes images 0..255; without them it takes images that are normalized already.
        std: Channel standard deviations in [0, 1] units that it divided by.
        name: Name of the model and prefix of its layers.

    Returns:
        Functional model from float32 (N, height, width, channels) to logits (N, C).

    Raises:
        InputError: a file of pickles, or one that cannot be read; names that are missing or unknown
            here, other shapes, numbers that are not finite.

    Reference:
        He et al. (2016), "Deep residual learning for image recognition", section 4.2; the cosine
        head: Cao et al. (2019), "Learning imbalanced datasets with label-distribution-aware
        margin loss", appendix B.
    """
    arrays = _arrays(state_dict)
    for known in ("conv1.weight", "linear.weight"):
        if known not in arrays:
            raise InputError(
                f"the state dict has no {known!r}: give that of a CIFAR ResNet (conv1, bn1, layer1 "
                "to layer3, linear)"
            )
    stem, last = arrays["conv1.weight"], arrays["linear.weight"]
    if stem.ndim != 4 or last.ndim != 2:
        raise InputError(
            f"conv1.weight and linear.weight have shapes {stem.shape} and {last.shape}; a CIFAR "
            "ResNet has 4 and 2 dimensions there"
        )
    head = "linear" if "linear.bias" in arrays else "cosine"
    channels = tuple(input_shape)[-1] if tuple(input_shape) else None
    if stem.shape[1] != channels:
        raise InputError(
            f"conv1.weight is for images of {stem.shape[1]} channels but input_shape is "
            f"{tuple(input_shape)}: give (height, width, {stem.shape[1]})"
        )
    blocks = {match[1] for key in arrays if (match := re.match(r"layer1\.(\d+)\.", key))}
    if not blocks:
        raise InputError("the state dict has no blocks 'layer1.0', 'layer1.1', ...")
    depth = 6 * len(blocks) + 2
    network = resnet(
        input_shape,
        int(last.shape[0 if head == "linear" else 1]),
        depth,
        head=head,
        width=int(stem.shape[0]),
        mean=mean,
        std=std,
        seed=0,
        name=name,
    )
    parameters = resnet_parameters(network, depth, head)
    what = f"a CIFAR ResNet-{depth} with the {head} head"
    if missing := [key for key in parameters if key not in arrays]:
        raise InputError(f"{what} needs {_names(missing)}, not in the state dict")
    if unexpected := [key for key in arrays if key not in parameters]:
        raise InputError(
            f"{what} and parameter-free shortcuts has no {_names(unexpected)}: the state dict is "
            "that of another network"
        )
    for key, parameter in parameters.items():
        if arrays[key].shape != parameter.shape:
            raise InputError(
                f"{key} has shape {arrays[key].shape}; {what} of this width needs {parameter.shape}"
            )
    for key, parameter in parameters.items():
        parameter.variable.assign(parameter.to_keras(arrays[key]))
    return network


def _names(keys: list[str]) -> str:
    """The first of some names, and how many there are more."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{keys[0]!r}{more}"


def _arrays(state_dict: Any) -> dict[str, np.ndarray]:
    """float32 arrays under their names without "module.", and without counters.

    Raises:
        InputError: not a mapping of names to finite numbers, nor a file of one.
    """
    if isinstance(state_dict, (str, os.PathLike)):
        state_dict = _read(Path(state_dict))
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise InputError(
            f"state_dict is a {type(state_dict).__name__}; give names to arrays, or the path of a "
            ".npz or .safetensors file"
        )
    arrays: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if key.rpartition(".")[2] == "num_batches_tracked":
            continue
        if key in arrays:
            raise InputError(f"the state dict has {key!r} twice, with and without 'module.'")
        arrays[key] = _array(key, value)
    return arrays


def _array(key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OUSM":
            raise TypeError(f"dtype {array.dtype}")
        array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{key} is not an array of numbers ({reason}): give float32") from error
    if not np.isfinite(array).all():
        raise InputError(f"{key} has values that are not finite: the training had failed")
    return array


def _read(path: Path) -> Mapping[str, Any]:
    """The arrays of a `.npz` or `.safetensors` file.

    Raises:
        InputError: another kind of file, one that cannot be read, no `safetensors` package.
    """
    kind = path.suffix.lower()
    if kind in _PICKLES:
        raise InputError(f"{path} is a pickle, which is never opened here: {_CONVERT}")
    if kind not in (".npz", ".safetensors"):
        raise InputError(f"{path} is neither .npz nor .safetensors: {_CONVERT}")
    if not path.is_file():
        raise InputError(f"{path} is not there")
    if kind == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise InputError(
                f"{path} needs the package safetensors: pip install 'keras-git[safetensors]'"
            ) from error
    try:
        if kind == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    # as many kinds of errors as there are kinds of damage (see keras_git.files.load_archive)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}): {_CONVERT}") from error
