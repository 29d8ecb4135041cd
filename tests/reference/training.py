"""Families of the training: sgd_steps, schedules, munit_steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_git import losses
from keras_git.data import samplers
from keras_git.models import discriminator, four_conv, generator_networks
from keras_git.optimizers import SGD, Adam, StepDecay, WarmUpStep
from keras_git.training.git_classifier import GITClassifier
from keras_git.training.munit import MUNIT
from tests.reference import weights
from tests.reference.gradients import GradientRecorder, Probe, Step
from tests.reference.models import discriminator_options, generator_options
from tests.reference.registry import Arrays, Check, Skip

_FACTORS = (1e-2, 1e-4)


def _schedule(base: float, milestones: list[int], steps_per_epoch: int) -> WarmUpStep:
    return WarmUpStep(base, steps_per_epoch, 5, milestones, _FACTORS[: len(milestones)])


def sgd_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """The four-convolution classifier trained over a drop of the learning rate."""
    images, labels = arrays["x"], arrays["labels"]
    steps, channels, height, width = images.shape[1], *images.shape[3:]
    num_classes = arrays["before/classifier.bias"].size
    network = four_conv((height, width, channels), num_classes, width=config["hidden"], seed=0)
    parameters = weights.four_conv_parameters(network)
    loss = losses.CrossEntropy()
    for variant, options in config["variants"].items():
        unknown = set(options) - {"weight_decay", "momentum", "accumulate_grad_batches"}
        if unknown:
            raise ValueError(f"unknown option {sorted(unknown)} of variant {variant}")
        schedule = _schedule(config["base_lr"], config["milestones"], steps)
        optimizer = SGD(
            schedule, options.get("momentum", 0.9), l2=options.get("weight_decay", 2e-4)
        )
        weights.assign(parameters, arrays, "before/")
        probe = Probe(network, loss, optimizer)
        accumulate = options.get("accumulate_grad_batches", 1)
        total = [0.0] * len(network.trainable_variables)
        for position, epoch in enumerate(config["epochs"]):
            here, values = f"{variant}/epoch{epoch}", []
            for step in range(steps):
                # the reference sets the rate by epoch, whatever number of updates came before
                optimizer.iterations.assign(epoch * steps + step)
                x = weights.channels_last(images[position, step])
                logs, gradients = probe.gradients(x, labels[position, step])
                values.append(logs["loss"])
                # The original keeps the gradients of an incomplete group for the next epoch but
                # counts the group anew there; that is a defect, so it is imitated here only.
                total = [t + g / accumulate for t, g in zip(total, gradients, strict=True)]
                if (step + 1) % accumulate == 0:
                    probe.apply(total)
                    total = [0.0] * len(network.trainable_variables)
            rate = keras.ops.convert_to_numpy(schedule(epoch * steps))
            yield Check(f"{here}/lr", rate, "abs", 1e-7)
            yield Check(f"{here}/losses", np.stack(values), "abs", 1e-4)
            for name, parameter in parameters.items():
                ours = parameter.from_keras(parameter.variable)
                yield Check(f"{here}/after/{name}", ours, "abs", 1e-4)


def _rules(labels: np.ndarray, counts: np.ndarray, first: int) -> dict[str, tuple[Any, Any]]:
    """Training rules of the paper: the sampler, and the class weights of the loss by epoch."""

    def unweighted(epoch: int) -> np.ndarray:
        del epoch
        return np.ones(counts.size)

    def weighted(epoch: int) -> np.ndarray:
        del epoch
        return losses.class_balanced_weights(counts)

    uniform = samplers.sampler("instance_balanced", labels)
    return {
        "None": (uniform, unweighted),
        "Resample": (samplers.sampler("effective_number", labels), unweighted),
        "ResampleSimple": (samplers.sampler("class_balanced", labels), unweighted),
        "DRS_Simple": (samplers.sampler("deferred", labels, epoch=first), unweighted),
        "Reweight": (uniform, weighted),
        "DRW": (uniform, losses.deferred_reweighting(counts, first)),
    }


def schedules_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Rate, sampler, weighting of the loss and activity of the generator, per epoch."""
    counts = np.asarray(config["small_counts"])
    labels = np.repeat(np.arange(counts.size), counts)
    network = four_conv((16, 16, 1), counts.size, width=1, seed=0)
    kinds = ("instance_balanced", "effective_number", "class_balanced")
    codes = [samplers.sampler(kind, labels).class_probabilities(0) for kind in kinds]
    for name, (epochs, first, second) in config["schedules"].items():
        schedule = _schedule(config["base_lr"], [first, second], 1)
        rates = [keras.ops.convert_to_numpy(schedule(epoch)) for epoch in range(epochs)]
        yield Check(f"{name}/lr", np.stack(rates), "abs", 1e-7)
        for rule, (sampler, class_weights) in _rules(labels, counts, first).items():
            probabilities = [sampler.class_probabilities(epoch) for epoch in range(epochs)]
            code = [
                next(i for i, c in enumerate(codes) if np.allclose(p, c, rtol=1e-9, atol=0.0))
                for p in probabilities
            ]
            yield Check(f"{name}/sampler_{rule}", np.array(code), "exact")
            used = [np.any(np.asarray(class_weights(e)) != 1.0) for e in range(epochs)]
            yield Check(f"{name}/loss_weighted_{rule}", np.array(used, int), "exact")
        # resampling starts at the first milestone, generation one epoch later
        for suffix, start in (("delayed", first + 1), ("not_delayed", 0)):
            classifier = GITClassifier(network, None, start_epoch=start)
            active = []
            for epoch in range(epochs):
                classifier.start_epoch_state(epoch)
                active.append(int(keras.ops.convert_to_numpy(classifier.generating)))
            yield Check(f"{name}/generator_active_{suffix}", np.array(active), "exact")


def _munit(config: dict, hyper: dict) -> tuple[MUNIT, dict[str, weights.Parameters], Any]:
    """The two-generator trainer of a variant, and its parameters by network."""
    if hyper.get("vgg_w", 0):
        raise ValueError("there is no perceptual loss here")
    size, gen, dis = config["size"], hyper["gen"], hyper["dis"]
    networks, discriminators, parameters = [], [], {}
    for domain in ("a", "b"):
        shape = (size, size, hyper[f"input_dim_{domain}"])
        built = generator_networks(
            shape, seed=0, prefix=f"generator_{domain}", **generator_options(gen)
        )
        networks.append(built)
        parameters[f"gen_{domain}"] = weights.generator_parameters(
            built, gen["n_downsample"], gen["n_res"]
        )
    for domain in ("a", "b"):
        shape = (size, size, hyper[f"input_dim_{domain}"])
        judge = discriminator(
            shape,
            num_scales=dis["num_scales"],
            seed=0,
            prefix=f"discriminator_{domain}",
            **discriminator_options(dis),
        )
        discriminators.append(judge)
        parameters[f"dis_{domain}"] = weights.discriminator_parameters(
            judge, dis["n_layer"], dis["num_scales"]
        )
    model = MUNIT(
        networks[0],
        discriminators[0],
        networks[1],
        discriminators[1],
        loss=dis["gan_type"],
        adversarial_weight=hyper["gan_w"],
        image_weight=hyper["recon_x_w"],
        style_weight=hyper["recon_s_w"],
        content_weight=hyper["recon_c_w"],
        cycle_weight=hyper["recon_x_cyc_w"],
    )
    if hyper.get("lr_policy", "constant") == "step":
        schedule = StepDecay(hyper["lr"], hyper["step_size"], hyper["gamma"])
    elif hyper.get("lr_policy", "constant") == "constant":
        schedule = StepDecay(hyper["lr"], 1, 1.0)
    else:
        raise ValueError(f"unknown lr_policy {hyper['lr_policy']!r}")

    def adam() -> Adam:
        betas = {"beta_1": hyper["beta1"], "beta_2": hyper["beta2"]}
        return Adam(schedule, **betas, epsilon=1e-8, l2=hyper["weight_decay"])

    # three steps are not worth the graph that TensorFlow would trace; JAX compiles in any case
    eager = keras.config.backend() == "tensorflow"
    model.compile(generator_optimizer=adam(), discriminator_optimizer=adam(), run_eagerly=eager)
    model.optimizer.build(model.trainable_variables)
    return model, parameters, schedule


def _terms_and_gradients(model: MUNIT, phase: str, variables: list[Any]) -> Step:
    """(images, styles) -> the losses of each domain, and the gradients of their weighted sum."""
    weights_of_terms = model.weights_of_terms

    def judge(images: list[Any], styles: list[Any]) -> tuple[Any, Any]:
        terms = model.discriminator_terms(images, styles)
        return weights_of_terms["adversarial"] * sum(terms), terms

    def generate(images: list[Any], styles: list[Any]) -> tuple[Any, Any]:
        terms = model.generator_terms(images, styles)
        total = sum(weights_of_terms[name] * d[name] for d in terms for name in d)
        return total, terms

    objective = judge if phase == "dis" else generate

    def function(images: list[Any], styles: list[Any]) -> Any:
        recorder = GradientRecorder()
        terms = model.minimize(lambda: objective(images, styles), variables, recorder)
        return terms, recorder.gradients

    return Step(model, function)


def _has_no_gradient(name: str) -> bool:
    """Biases in front of an instance normalization or AdaIN: their true gradient is zero."""
    return bool(re.fullmatch(r"(enc_content|dec\.model\.0)\..*\.conv\.bias", name))


def munit_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Full training iterations of the two-generator trainer."""
    for variant, hyper in config["hyper"].items():
        model, parameters, schedule = _munit(config, hyper)
        for network, named in parameters.items():
            weights.assign(named, arrays, f"before/{network}/")
        unstable = set(np.atleast_1d(arrays[f"{variant}/unstable"]).tolist())
        yield Skip(f"{variant}/unstable", "a list of names")
        generator_variables = model.generator_variables
        judge_variables = [v for d in model.discriminators for v in d.trainable_variables]
        judge = _terms_and_gradients(model, "dis", judge_variables)
        generate = _terms_and_gradients(model, "gen", generator_variables)
        for step in range(1, config["steps"] + 1):
            here = f"{variant}/step{step}"
            images = [weights.channels_last(arrays[f"step{step}/x_{d}"]) for d in "ab"]
            styles = {
                phase: [arrays[f"step{step}/{phase}_s_{d}"][:, :, 0, 0] for d in "ab"]
                for phase in ("dis", "gen")
            }

            judged, judge_gradients = judge(images, styles["dis"])
            before = [keras.ops.convert_to_numpy(v) for v in generator_variables]
            batch = {
                "images": (images[0] + 1.0) * 127.5,
                "source_images": (images[1] + 1.0) * 127.5,
                "discriminator_style_a": styles["dis"][0],
                "discriminator_style_b": styles["dis"][1],
                "generator_style_a": styles["gen"][0],
                "generator_style_b": styles["gen"][1],
            }
            # train_on_batch hands arrays to the step as they are, fit would convert them
            batch = {key: keras.ops.convert_to_tensor(value) for key, value in batch.items()}
            logs = model.train_on_batch(batch, return_dict=True)
            after = [keras.ops.convert_to_numpy(v) for v in generator_variables]
            # the losses of the generator update: with the new discriminator, the old generator
            for variable, value in zip(generator_variables, before, strict=True):
                variable.assign(value)
            generated, generator_gradients = generate(images, styles["gen"])
            for variable, value in zip(generator_variables, after, strict=True):
                variable.assign(value)

            yield Check(f"{here}/lr", keras.ops.convert_to_numpy(schedule(step - 1)), "rel", 1e-6)
            ours = {
                "dis_a": judged[0],
                "dis_b": judged[1],
                "dis_total": np.asarray(logs["discriminator_loss"]),
                "gen_total": np.asarray(logs["generator_loss"]),
            }
            for index, domain in enumerate("ab"):
                terms, other = generated[index], "ba"[index]
                ours[f"gen_adv_{domain}"] = terms["adversarial"]
                ours[f"gen_recon_x_{domain}"] = terms["image"]
                ours[f"gen_recon_s_{domain}"] = terms["style"]
                # named after the domain of the image whose content is recovered
                ours[f"gen_recon_c_{other}"] = terms["content"]
                ours[f"gen_cycrecon_x_{domain}"] = terms.get("cycle", np.zeros(()))
            for name, value in ours.items():
                yield Check(f"{here}/loss_{name}", value, "rel", 1e-4)

            gradients = dict(
                zip(
                    [id(v) for v in [*judge_variables, *generator_variables]],
                    [*judge_gradients, *generator_gradients],
                    strict=True,
                )
            )
            small, quantile = 2.0 * hyper["lr"] * step, 0.05 * hyper["lr"] * step
            for network, named in parameters.items():
                for name, parameter in named.items():
                    gradient = parameter.from_keras(gradients[id(parameter.variable)])
                    key = f"{here}/grad/{network}/{name}"
                    if network.startswith("gen") and _has_no_gradient(name):
                        yield Skip(key, "its true value is zero")
                    else:
                        yield Check(key, gradient, "rel", 1e-4)
                    key = f"after{step}/{network}/{name}"
                    if key in unstable or f"{variant}/{key}" in unstable:
                        yield Skip(f"{variant}/{key}", "listed as unstable")
                    else:
                        ours = parameter.from_keras(parameter.variable)
                        yield Check(f"{variant}/{key}", ours, "quantile", quantile, small)


FAMILIES = {
    "sgd_steps": sgd_family,
    "schedules": schedules_family,
    "munit_steps": munit_family,
}
