"""Registers a layer; imported by the tests only after a model with it has been refused."""

from __future__ import annotations

import keras


@keras.saving.register_keras_serializable(package="audited")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x
