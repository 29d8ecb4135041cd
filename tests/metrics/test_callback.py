from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git import transforms
from keras_git.errors import InputError
from keras_git.metrics import ExpectedKLCallback, expected_kl


def test_callback_measures_the_current_weights_and_logs():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 6, 6, 1)).astype(np.uint8)
    labels = np.repeat([0, 1], 4)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    wanted = {"dim": transforms.Brightness(), "flip": transforms.HorizontalFlip()}
    callback = ExpectedKLCallback(
        images, labels, wanted, every=2, num_samples=3, batch_size=8, seed=4
    )
    history = model.fit(
        images, labels, batch_size=4, epochs=4, verbose=0, shuffle=False, callbacks=[callback]
    ).history
    assert [entry["epoch"] for entry in callback.history["dim"]] == [1, 3]
    assert len(history["ekld_dim"]) == 2 and len(history["consistency_flip"]) == 2
    for name, transform in wanted.items():
        after = expected_kl(model, images, labels, transform, 3, batch_size=8, seed=4)
        last = callback.history[name][-1]
        np.testing.assert_allclose(last["ekld"], after.ekld, rtol=1e-5)
        assert last["consistency"] == after.to_dict()["consistency"]
        assert history[f"ekld_{name}"][-1] == pytest.approx(after.mean_ekld)
    assert callback.history["dim"][0]["ekld"] != callback.history["dim"][1]["ekld"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": {}}, "transforms is empty"),
        ({"transforms": {"a": transforms.Identity()}, "every": 0}, "every"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        ExpectedKLCallback(np.zeros((1, 2, 2, 1)), np.zeros(1, int), **options)
