"""Import of PyTorch weights: values of the original program, names, files, what is refused."""

from __future__ import annotations

import pickle
import sys

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.models import import_torch_resnet, resnet
from keras_git.models.torch_parameters import resnet_parameters

RNG = np.random.default_rng(0)


def state_dict(depth=8, width=4, classes=3, channels=1, head="linear"):
    """Random weights, with the names and shapes that PyTorch has; written out, not derived."""
    found = {"conv1.weight": (width, channels, 3, 3)}
    norms = ["bn1"]
    before = width
    for stage in (1, 2, 3):
        here = width * 2 ** (stage - 1)
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            found[f"{name}.conv1.weight"] = (here, before, 3, 3)
            found[f"{name}.conv2.weight"] = (here, here, 3, 3)
            norms += [f"{name}.bn1", f"{name}.bn2"]
            before = here
    sizes = {"bn1": width}
    for norm in norms:
        size = sizes.get(norm) or width * 2 ** (int(norm[5]) - 1)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{part}"] = (size,)
    if head == "linear":
        found |= {"linear.weight": (classes, 4 * width), "linear.bias": (classes,)}
    else:
        found |= {"linear.weight": (4 * width, classes)}
    arrays = {k: RNG.uniform(0.1, 1, shape).astype("float32") for k, shape in found.items()}
    return arrays | {f"{norm}.num_batches_tracked": np.array(7) for norm in norms}


def logits_of(network, images):
    return keras.ops.convert_to_numpy(network(images, training=False))


def imported(given, **options):
    return import_torch_resnet(given, input_shape=(8, 8, 1), **options)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("name", ["resnet20_linear", "resnet20_normed_ldam"])
def test_logits_of_the_original_program(fixture_folder, name):
    with np.load(fixture_folder / f"{name}.npz") as arrays:
        weights = {k.removeprefix("w/"): arrays[k] for k in arrays if k.startswith("w/")}
        images, expected = arrays["x"].transpose(0, 2, 3, 1), arrays["logits_eval"]
    np.testing.assert_allclose(logits_of(import_torch_resnet(weights), images), expected, atol=1e-4)
    if name == "resnet20_linear":
        # with its own scaling the same images come from 0..255
        mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        scaled = import_torch_resnet(weights, mean=mean, std=std)
        pixels = 255 * (images * np.array(std) + np.array(mean))
        logits = logits_of(scaled, pixels.astype("float32"))
        np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.slow_on("jax")
def test_number_of_parameters_of_resnet32():
    network = import_torch_resnet(state_dict(32, 16, 10, 3))
    assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == 464154
    assert network.input_shape == (None, 32, 32, 3) and network.output_shape == (None, 10)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_every_array_lands_at_its_place(head):
    given = state_dict(head=head)
    network = imported(given, name="net")
    parameters = resnet_parameters(network, 8, head)
    counters = {key for key in given if key.endswith("num_batches_tracked")}
    assert set(parameters) == set(given) - counters
    for key, parameter in parameters.items():
        assert parameter.shape == given[key].shape
        np.testing.assert_array_equal(parameter.from_keras(parameter.variable), given[key])
    assert len(network.weights) == len(parameters) and network.name == "net"


class Tensor:
    """What a PyTorch tensor is to this: no array before detach and cpu."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def cpu(self):
        return self.array

    def __array__(self, *args, **kwargs):
        raise RuntimeError("requires grad")


@pytest.mark.slow_on("jax")
def test_wrappers_prefixes_tensors_and_files(tmp_path):
    from safetensors.numpy import save_file

    given = state_dict()
    kernel = given["layer2.0.conv1.weight"]
    np.savez(tmp_path / "weights.npz", **given)
    save_file(given, tmp_path / "weights.safetensors")
    parallel = {f"module.{k}": v for k, v in given.items()}
    cases = [
        {"state_dict": parallel, "epoch": 200, "best_prec1": 92.6},
        {key: Tensor(value) for key, value in given.items()},
        {key: value.astype("float64") for key, value in given.items()},
        str(tmp_path / "weights.npz"),
        tmp_path / "weights.safetensors",
    ]
    for case in cases:
        network = imported(case)
        found = network.get_layer("classifier_stage2_block0_conv1").kernel
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(found), kernel.transpose(2, 3, 1, 0)
        )


@pytest.mark.slow_on("jax", "tensorflow")  # they would load PyTorch for it
def test_tensors_of_pytorch():
    torch = pytest.importorskip("torch")
    given = state_dict()
    tensors = {
        k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for k, v in given.items()
    }
    kernel = imported(tensors).get_layer("classifier_head").kernel
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), given["linear.weight"].T)
    tensors["bn1.weight"] = tensors["bn1.weight"].bfloat16()
    with pytest.raises(InputError, match="bn1.weight is not an array of numbers"):
        imported(tensors)


def without(key):
    return {k: v for k, v in state_dict().items() if k != key}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: without("conv1.weight"), "no 'conv1.weight'"),
        (lambda: without("linear.weight"), "no 'linear.weight'"),
        (lambda: {k: v for k, v in state_dict().items() if "layer1" not in k}, "no blocks"),
        (lambda: state_dict() | {"conv1.weight": np.ones(4)}, "4 and 2 dimensions"),
        (lambda: state_dict() | {"bn1.bias": np.full(4, np.nan)}, "bn1.bias has values"),
        (lambda: state_dict() | {"bn1.bias": "text"}, "bn1.bias is not an array"),
        (lambda: state_dict() | {"bn1.bias": [object()]}, "bn1.bias is not an array"),
        (lambda: state_dict() | {"module.bn1.bias": np.ones(4)}, "twice"),
        (lambda: state_dict(channels=3), "images of 3 channels"),
        (lambda: state_dict(width=3), "width is 3"),
        (lambda: state_dict(classes=1), "num_classes is 1"),
        (lambda: [1, 2], "is a list"),
        (lambda: {1: 2}, "give names to arrays"),
        (lambda: "weights.h5", "neither .npz nor .safetensors"),
        (lambda: "not_there.npz", "not there"),
    ],
)
def test_bad_state_dicts(make, words):
    with pytest.raises(InputError, match=words) as caught:
        imported(make())
    assert "\n" not in str(caught.value)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: without("layer3.0.bn2.running_var"), "needs 'layer3.0.bn2.running_var'"),
        (lambda: without("layer1.0.conv1.weight"), "needs 'layer1.0.conv1.weight'"),
        (lambda: without("linear.bias"), "linear.weight has shape"),
        (
            lambda: state_dict() | {"layer2.0.shortcut.0.weight": np.ones((8, 4, 1, 1))},
            "parameter-free shortcuts has no 'layer2.0.shortcut.0.weight'",
        ),
        (
            lambda: state_dict() | {f"layer2.1.conv{i}.weight": np.ones(3) for i in (1, 2)},
            "no 'layer2.1.conv1.weight' and 1 more",
        ),
        (lambda: state_dict() | {"bn1.bias": np.ones(5)}, r"bn1.bias has shape \(5,\).*\(4,\)"),
        (lambda: state_dict() | {"conv1.weight": np.ones((4, 1, 5, 5))}, "conv1.weight has shape"),
    ],
)
def test_state_dicts_of_other_networks(make, words):
    with pytest.raises(InputError, match=words) as caught:
        imported(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".th", ".bin", ".ckpt", ".tar", ".PT"])
def test_pickles_are_refused_unopened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(InputError, match=r"pickle, which is never opened here: .*np\.savez\("):
        imported(path)


def test_damaged_files_and_pickles_in_disguise(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "exit", ran.append)

    class Trap:
        def __reduce__(self):
            return sys.exit, (1,)

    for name, content in (
        ("a.npz", pickle.dumps(Trap())),
        ("b.npz", b"PK\x03\x04 cut off"),
        ("c.safetensors", pickle.dumps(Trap())),
        ("d.safetensors", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read") as caught:
            imported(tmp_path / name)
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "e.npz", **{"conv1.weight": np.array([{}], dtype=object)})
    with pytest.raises(InputError, match="cannot be read"):
        imported(tmp_path / "e.npz")
    assert not ran
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(InputError, match=r"pip install 'keras-git\[safetensors\]'"):
        imported(tmp_path / "d.safetensors")


@pytest.mark.slow_on("jax")
def test_the_network_is_that_of_resnet(tmp_path):
    network = imported(state_dict())
    same = resnet((8, 8, 1), 3, 8, width=4, seed=0)
    same.set_weights(network.get_weights())
    images = RNG.normal(size=(2, 8, 8, 1)).astype("float32")
    logits = logits_of(network, images)
    np.testing.assert_array_equal(logits_of(same, images), logits)
    network.save(tmp_path / "imported.keras")
    opened = keras.saving.load_model(tmp_path / "imported.keras")
    np.testing.assert_allclose(logits_of(opened, images), logits, atol=1e-6)
