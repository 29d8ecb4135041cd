"""Training on all devices of a machine at once: every device works on its part of each batch.

On JAX this is `keras.distribution.DataParallel`, on TensorFlow `tf.distribute.MirroredStrategy`;
Keras has neither for PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from keras_git import backend


def num_devices() -> int:
    """Devices that `data_parallel` would use: the accelerators of this process, or else its CPUs.

    Raises:
        InputError: on PyTorch.
    """
    return backend.num_devices()


@contextmanager
def data_parallel() -> Iterator[int]:
    """What is built, compiled and fitted inside trains on all devices of this process.

    The training of a batch is that of one device: `keras_git.layers` and, in a
    `keras_git.training.Classifier`, batch normalization take their statistics over the whole
    batch, losses are means over it, and random numbers are those that one device would draw. The
    saved models and checkpoints are plain, too. With one device it does nothing.

    Make networks, optimizers and models inside, and load checkpoints there. Each batch must have a
    multiple of as many images as there are devices; give a `tf.data.Dataset` or arrays on
    TensorFlow, such as `keras_git.data.training_data` makes. A network may be used outside, too.

    Yields:
        The number of devices, 1 or more.

    Raises:
        InputError: on PyTorch.
    """
    number = num_devices()
    if number == 1:
        yield 1
        return
    with backend.data_parallel_scope():
        yield number
