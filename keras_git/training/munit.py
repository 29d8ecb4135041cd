"""Training of the nuisance generator."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_git import backend
from keras_git.errors import InputError
from keras_git.losses.adversarial import ADVERSARIAL_LOSSES, discriminator_loss, generator_loss
from keras_git.models import GeneratorNetworks
from keras_git.optimizers import Adam

_DOMAINS = ("a", "b")
_TERMS = ("adversarial", "image", "style", "content", "cycle")


def _mean_absolute(a: Any, b: Any) -> Any:
    return ops.mean(ops.abs(a - b))


@keras.saving.register_keras_serializable(package="keras_git")
class MUNIT(backend.StepModel):
    """Learns which nuisances a dataset has, as the style of an image-to-image generator.

    One step updates the discriminator, then the generator against the updated discriminator.
    With one pair of networks (`domains == 1`) an image is translated within its own domain: the
    half of the paper's losses that is left when both domains are the same data. With two pairs
    it is the paper's training, in which two generators see two independent draws of the data.

    Args:
        networks: content encoder, style encoder, decoder and generator, from
            `keras_git.models.generator_networks`.
        discriminator: from `keras_git.models.discriminator`.
        networks_b: networks of the second domain, for the paper's two-generator training.
        discriminator_b: discriminator of the second domain; given if and only if `networks_b` is.
        loss: `"lsgan"`, `"nsgan"` or `"hinge"`.
        adversarial_weight: weight of the adversarial loss.
        image_weight: weight of the reconstruction of an image from its own codes.
        style_weight: weight of the reconstruction of a style from the generated image.
        content_weight: weight of the reconstruction of a content; its gradient flows into both
            sides.
        cycle_weight: weight of the cycle reconstruction; 0 leaves its networks out of the step.
        seed: seed of the styles drawn while training.

    Data of `fit`: `x`, or `(x, y)` whose labels are ignored. `x` holds images (B, H, W, C) in
    0..255, uint8 or float; for two domains a dictionary with `"images"` and `"source_images"`,
    the draws of the first and of the second domain. For tests the dictionary may also hold the
    styles (B, style_dim) under `"discriminator_style_a"`, `"generator_style_a"`, and `..._b`.

    Raises:
        InputError: unknown `loss`, or only one of `networks_b` and `discriminator_b`.

    Reference: Huang et al., *Multimodal Unsupervised Image-to-Image Translation*, ECCV 2018,
    equations 1-5; Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022,
    section 4.1.
    """

    def __init__(
        self,
        networks: GeneratorNetworks,
        discriminator: keras.Model,
        networks_b: GeneratorNetworks | None = None,
        discriminator_b: keras.Model | None = None,
        *,
        loss: str = "lsgan",
        adversarial_weight: float = 1.0,
        image_weight: float = 10.0,
        style_weight: float = 1.0,
        content_weight: float = 1.0,
        cycle_weight: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if loss not in ADVERSARIAL_LOSSES:
            raise InputError(f"loss {loss!r} is unknown: use one of {ADVERSARIAL_LOSSES}")
        if (networks_b is None) != (discriminator_b is None):
            raise InputError("two domains need both networks_b and discriminator_b; one was given")
        super().__init__(seed=seed, **kwargs)
        # A flat list, because Keras saves the state of lists of layers but not of nested ones.
        self._networks = [*networks, *(networks_b or ())]
        self.discriminators = [discriminator]
        if discriminator_b is not None:
            self.discriminators.append(discriminator_b)
        self.adversarial_loss = loss
        self.weights_of_terms = {
            "adversarial": adversarial_weight,
            "image": image_weight,
            "style": style_weight,
            "content": content_weight,
            "cycle": cycle_weight,
        }
        self.style_dim = int(networks.style_encoder.output_shape[-1])
        terms = [t for t in _TERMS if t != "cycle" or cycle_weight]
        self._trackers = [
            keras.metrics.Mean(name=name)
            for name in ("discriminator_loss", "generator_loss", *(f"{t}_loss" for t in terms))
        ]
        self.built = True

    @property
    def networks(self) -> list[GeneratorNetworks]:
        """The networks of each domain."""
        size = len(GeneratorNetworks._fields)
        flat = self._networks
        return [GeneratorNetworks(*flat[i : i + size]) for i in range(0, len(flat), size)]

    @property
    def domains(self) -> int:
        """1, or 2 for the paper's two generators."""
        return len(self.discriminators)

    @property
    def generator(self) -> keras.Model:
        """The generator of the first domain: the one that is used afterwards."""
        return self.networks[0].generator

    @property
    def metrics(self) -> list[Any]:
        return list(self._trackers)

    def compile(
        self,
        optimizer: Any = None,
        *,
        generator_optimizer: Any = None,
        discriminator_optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures the training.

        Args:
            optimizer: a `keras.optimizers.MultiOptimizer` over both groups; made from the other
                two if absent.
            generator_optimizer: optimizer of encoders and decoders; default is the paper's
                `keras_git.optimizers.Adam(1e-4, beta_1=0.5, beta_2=0.999, l2=1e-4)`.
            discriminator_optimizer: the same for the discriminators.
            **kwargs: as for `keras.Model.compile`.
        """
        if optimizer is None or isinstance(optimizer, str):
            optimizer = keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(
                    generator_optimizer or Adam(l2=1e-4),
                    {".*discriminator.*": discriminator_optimizer or Adam(l2=1e-4)},
                )
            )
        super().compile(optimizer=optimizer, **kwargs)

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        return config and {k: config[k] for k in ("optimizer", "jit_compile") if k in config}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(optimizer, jit_compile=config.get("jit_compile", "auto"))
        optimizer.build(self.trainable_variables)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Generated images in [-1, 1] from `(image in [-1, 1], style)`."""
        return self.generator(inputs, training=training)

    def _styles(self, x: Any, images: list[Any], phase: str) -> list[Any]:
        # Always drawn, so that the state of the generator does not depend on who passes styles.
        drawn = [
            backend.rows_of_replica(
                lambda rows: keras.random.normal((rows, self.style_dim), seed=self.seed_generator),
                ops.shape(images[0])[0],
            )
            for _ in self.networks
        ]
        if not isinstance(x, dict):
            return drawn
        names = [f"{phase}_style_{domain}" for domain in _DOMAINS[: self.domains]]
        return [x.get(name, style) for name, style in zip(names, drawn, strict=True)]

    def discriminator_terms(self, images: list[Any], styles: list[Any]) -> list[Any]:
        """Loss of each domain's discriminator. Images (B, H, W, C) in [-1, 1], one per domain."""
        contents = [n.content_encoder(x) for n, x in zip(self.networks, images, strict=True)]
        losses = []
        for i, network in enumerate(self.networks):
            fake = network.decoder([contents[self._other(i)], styles[i]])
            # No gradient goes into the generator here: saves its backward pass everywhere.
            fake = ops.stop_gradient(fake)
            discriminator = self.discriminators[i]
            losses.append(
                discriminator_loss(
                    _listed(discriminator(fake)),
                    _listed(discriminator(images[i])),
                    self.adversarial_loss,
                )
            )
        return losses

    def generator_terms(self, images: list[Any], styles: list[Any]) -> list[dict[str, Any]]:
        """Unweighted losses of each domain, by term; arguments as `discriminator_terms`."""
        contents = [n.content_encoder(x) for n, x in zip(self.networks, images, strict=True)]
        own_styles = [n.style_encoder(x) for n, x in zip(self.networks, images, strict=True)]
        fakes = [
            network.decoder([contents[self._other(i)], styles[i]])
            for i, network in enumerate(self.networks)
        ]
        fake_contents = [n.content_encoder(f) for n, f in zip(self.networks, fakes, strict=True)]
        terms = []
        for i, network in enumerate(self.networks):
            j = self._other(i)
            reconstruction = network.decoder([contents[i], own_styles[i]])
            term = {
                "adversarial": generator_loss(
                    _listed(self.discriminators[i](fakes[i])), self.adversarial_loss
                ),
                "image": _mean_absolute(reconstruction, images[i]),
                "style": _mean_absolute(network.style_encoder(fakes[i]), styles[i]),
                "content": _mean_absolute(fake_contents[i], contents[j]),
            }
            if self.weights_of_terms["cycle"]:
                cycle = network.decoder([fake_contents[j], own_styles[i]])
                term["cycle"] = _mean_absolute(cycle, images[i])
            terms.append(term)
        return terms

    def _other(self, i: int) -> int:
        """The domain that domain `i` takes its contents from: itself if there is only one."""
        return self.domains - 1 - i

    def _discriminator_objective(self, images: list[Any], styles: list[Any]) -> Any:
        losses = self.discriminator_terms(images, styles)
        loss = self.weights_of_terms["adversarial"] * sum(losses[1:], losses[0])
        return loss, {"discriminator_loss": loss}

    def _generator_objective(self, images: list[Any], styles: list[Any]) -> Any:
        domains = self.generator_terms(images, styles)
        sums = {name: sum(d[name] for d in domains) for name in domains[0]}
        loss = sum(self.weights_of_terms[name] * value for name, value in sums.items())
        return loss, {
            "generator_loss": loss,
            **{f"{name}_loss": value for name, value in sums.items()},
        }

    def step(self, data: Any, training: bool) -> dict[str, Any]:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, dict):
            names = ("images", "source_images")[: self.domains]
            missing = [name for name in names if name not in x]
            if missing:
                raise InputError(f"MUNIT with {self.domains} domain(s) needs x[{missing[0]!r}]")
            images = [x[name] for name in names]
        elif self.domains == 1:
            images = [x]
        else:
            raise InputError("MUNIT with 2 domains needs x = {'images': ..., 'source_images': ...}")
        images = [ops.cast(image, "float32") / 127.5 - 1.0 for image in images]
        discriminator_styles = self._styles(x, images, "discriminator")
        generator_styles = self._styles(x, images, "generator")
        if training:
            discriminator_optimizer, generator_optimizer = self.optimizer.optimizers
            logs = self.minimize(
                lambda: self._discriminator_objective(images, discriminator_styles),
                [v for d in self.discriminators for v in d.trainable_variables],
                discriminator_optimizer,
            )
            logs |= self.minimize(
                lambda: self._generator_objective(images, generator_styles),
                self.generator_variables,
                generator_optimizer,
            )
        else:
            logs = self._discriminator_objective(images, discriminator_styles)[1]
            logs |= self._generator_objective(images, generator_styles)[1]
        for metric in self._trackers:
            metric.update_state(logs[metric.name], sample_weight=ops.shape(images[0])[0])
        return {metric.name: metric.result() for metric in self._trackers}

    @property
    def generator_variables(self) -> list[Any]:
        """Trainable variables of encoders and decoders of all domains."""
        return [
            v
            for n in self.networks
            for part in (n.content_encoder, n.style_encoder, n.decoder)
            for v in part.trainable_variables
        ]

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        config = {
            "loss": self.adversarial_loss,
            **{f"{name}_weight": value for name, value in self.weights_of_terms.items()},
            "seed": self.seed,
            "name": self.name,
        }
        for suffix, networks, discriminator in zip(
            ("", "_b"), self.networks, self.discriminators, strict=False
        ):
            config[f"networks{suffix}"] = {
                "generator": serialize(networks.generator),
                "style_encoder": serialize(networks.style_encoder),
            }
            config[f"discriminator{suffix}"] = serialize(discriminator)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MUNIT:
        config = dict(config)
        restore = keras.saving.deserialize_keras_object
        for suffix in ("", "_b"):
            if f"networks{suffix}" in config:
                parts = {k: restore(v) for k, v in config[f"networks{suffix}"].items()}
                config[f"networks{suffix}"] = _networks_from(**parts)
                config[f"discriminator{suffix}"] = restore(config[f"discriminator{suffix}"])
        return cls(**config)


def _networks_from(generator: keras.Model, style_encoder: keras.Model) -> GeneratorNetworks:
    nested = {
        role: next(layer for layer in generator.layers if layer.name.endswith(role))
        for role in ("content_encoder", "decoder")
    }
    return GeneratorNetworks(style_encoder=style_encoder, generator=generator, **nested)


def _listed(scores: Any) -> list[Any]:
    return list(scores) if isinstance(scores, (list, tuple)) else [scores]
