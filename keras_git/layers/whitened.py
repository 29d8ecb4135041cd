"""What whitened layers have in common: their arguments, the input's normalization, the fold."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.layers.blocks import Blocks, ChannelBlocks
from keras_git.layers.normalization import centred, l1_normalized, sample_normalized
from keras_git.layers.statistics import OriginalStatistics, WhiteningStatistics

RULES = ("careful", "original")
STANDARDIZATIONS = ("channel", "block")
FEATURE_NORMALIZATIONS = ("sample", "l1", "receptive_field")
# Of the careful rules; the original adds the layer's own epsilon.
NORMALIZATION_EPSILON = 1e-7


class Whitened(keras.layers.Layer):
    """Mix-in in front of a Keras layer with `kernel` and `bias`: whitens the layer's input.

    The input x is replaced by ``D (x - mean)`` with ``D = (covariance + ridge) ** -0.5``, which is
    not computed: kernel and bias of the layer are multiplied instead. In training the statistics
    are those of the batch and gradients flow through them; in inference, running ones. A batch with
    NaN or infinity gives outputs of NaN and leaves the running ones as they were.

    Args:
        block_size: channels whitened together, see `keras_git.layers.blocks`; by default 8, of
            dense layers 64 (rules "original": 64 and 512).
        epsilon: ridge, as a part of the features' mean variance (rules "original": absolute).
        iterations: Newton-Schulz steps; few of them leave small eigenvalues damped. More than 7
            need many more rows than features.
        momentum: share of the old running statistics in an update.
        sampling_stride: statistics are taken at every so many positions of the convolution, in both
            directions; the careful rules sample at least 2 by 2 positions where there are.
        update_interval: training steps from one whitening matrix to the next. Mean and scale are
            those of the batch in every step, but with the rules "original", which keep everything
            as it was at the last update. More than 1 can diverge at learning rates near 1.
        frozen: running statistics also in training, without updates; may be set at any time before
            a model is compiled. ``trainable = False`` implies it.
        freeze_iterations: None, or f for the original's schedule, updates in the first f of every
            10 f steps.
        differentiate_statistics: whether gradients flow through mean and covariance.
        feature_normalization: None, "sample", "l1" (see the layers of these names) or
            "receptive_field" (convolutions only).
        standardization: what features are divided by before the whitening matrix is computed, the
            deviation of their "block" or of their "channel". By block, the matrix is the symmetric
            one (ZCA) of the features as they are; by channel, the scale of single channels is
            undone whatever the iterations. Not for the rules "original".
        rules: "careful", or "original" for the original program's division into blocks, sampling,
            ridge and running statistics.

    Raises:
        InputError: an impossible value.
    """

    # Channels whitened together, by the rules.
    default_block_sizes: ClassVar[dict[str, int]] = {"careful": 8, "original": 64}

    def __init__(
        self,
        *args: Any,
        block_size: int | None = None,
        epsilon: float = 1e-5,
        iterations: int = 5,
        momentum: float = 0.9,
        sampling_stride: int = 3,
        update_interval: int = 1,
        frozen: bool = False,
        freeze_iterations: int | None = None,
        differentiate_statistics: bool = True,
        feature_normalization: str | None = None,
        standardization: str = "block",
        rules: str = "careful",
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("lora_rank", None) or kwargs.get("quantization_config"):
            raise InputError("whitened layers have neither LoRA nor quantization")
        kwargs.pop("lora_alpha", None)
        # The kernel is whitened in float32 whatever the layer computes in, so nothing is cast
        # behind its back.
        super().__init__(*args, autocast=False, **kwargs)
        if rules not in RULES:
            raise InputError(f"rules is {rules!r}; allowed: {', '.join(RULES)}")
        if block_size is None:
            block_size = self.default_block_sizes[rules]
        for name, value in (
            ("block_size", block_size),
            ("iterations", iterations),
            ("sampling_stride", sampling_stride),
            ("update_interval", update_interval),
            ("freeze_iterations", 1 if freeze_iterations is None else freeze_iterations),
        ):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < 1:
                raise InputError(f"{name} is {value!r}; give a whole number of 1 or more")
        if not epsilon >= 0:
            raise InputError(f"epsilon is {epsilon!r}; it must be 0 or more")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum is {momentum!r}; it must be from 0 to below 1")
        if feature_normalization not in (None, *FEATURE_NORMALIZATIONS):
            raise InputError(
                f"feature_normalization is {feature_normalization!r}; allowed: None, "
                f"{', '.join(FEATURE_NORMALIZATIONS)}"
            )
        if standardization not in STANDARDIZATIONS:
            raise InputError(
                f"standardization is {standardization!r}; allowed: {', '.join(STANDARDIZATIONS)}"
            )
        self.block_size, self.epsilon = int(block_size), float(epsilon)
        self.iterations = int(iterations)
        self.momentum, self.sampling_stride = float(momentum), int(sampling_stride)
        self.update_interval, self.frozen = int(update_interval), bool(frozen)
        self.freeze_iterations = None if freeze_iterations is None else int(freeze_iterations)
        self.differentiate_statistics = bool(differentiate_statistics)
        self.feature_normalization, self.rules = feature_normalization, rules
        self.standardization = standardization

    @property
    def original(self) -> bool:
        """Whether the original program's rules hold."""
        return self.rules == "original"

    def _build_statistics(self, blocks: Blocks) -> None:
        self._blocks = blocks
        options: dict[str, Any] = {
            "epsilon": self.epsilon,
            "iterations": self.iterations,
            "momentum": self.momentum,
            "update_interval": self.update_interval,
            "freeze_iterations": self.freeze_iterations,
            "differentiate": self.differentiate_statistics,
            "dtype": self.dtype_policy,
            "name": "statistics",
        }
        self.statistics: OriginalStatistics | WhiteningStatistics
        if isinstance(blocks, ChannelBlocks):
            by_channel = self.standardization == "channel"
            self.statistics = WhiteningStatistics(blocks, by_channel, **options)
        else:
            self.statistics = OriginalStatistics(blocks, **options)
        self.statistics.build()

    def running(self) -> tuple[Any, Any]:
        """What whitens in inference: means `(S, F)`, matrices `(S, F, F)` of S sets of features."""
        return self.statistics.current(lambda: None, False)

    @property
    def _wide(self) -> str:
        """The dtype of statistics and fold."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    def normalized(self, inputs: Any) -> Any:
        """The input in the layer's dtype, normalized where that is a step before this one."""
        x = inputs
        if keras.backend.standardize_dtype(x.dtype) != self.compute_dtype:
            x = ops.cast(x, self.compute_dtype)
        if self.feature_normalization is None:
            return x
        if self.feature_normalization == "receptive_field":
            # Windows are standardized anyway. This keeps the digits of images far from 0, and the
            # padding counts as average.
            return x if self.original else ops.cast(centred(ops.cast(x, self._wide)), x.dtype)
        epsilon = self.epsilon if self.original else NORMALIZATION_EPSILON
        function = sample_normalized if self.feature_normalization == "sample" else l1_normalized
        return ops.cast(function(ops.cast(x, self._wide), epsilon), self.compute_dtype)

    def _updating(self, training: Any) -> bool:
        # of this layer: one made after `trainable = False` was set does not pass it on
        return bool(training) and self.trainable and not self.frozen

    def _whitened_kernel(self, mean: Any, whitening: Any, kernel: Any) -> tuple[Any, Any]:
        """Kernel `(taps, channels / groups, outputs)` and what the mean adds to each output."""
        matrices = whitening @ self._blocks.split(kernel)
        return self._blocks.join(matrices), self._blocks.offset(mean, matrices)

    def folded_weights(self) -> tuple[np.ndarray, ...]:
        """Weights of the plain layer that computes the same in inference; see `fold`."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("lora_rank", "lora_alpha", "quantization_config"):
            config.pop(name, None)
        return {
            **config,
            "block_size": self.block_size,
            "epsilon": self.epsilon,
            "iterations": self.iterations,
            "momentum": self.momentum,
            "sampling_stride": self.sampling_stride,
            "update_interval": self.update_interval,
            "frozen": self.frozen,
            "freeze_iterations": self.freeze_iterations,
            "differentiate_statistics": self.differentiate_statistics,
            "feature_normalization": self.feature_normalization,
            "standardization": self.standardization,
            "rules": self.rules,
        }

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise InputError("whitened layers have no LoRA: fold the model first")

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise InputError("whitened layers are not quantized: fold the model first")
