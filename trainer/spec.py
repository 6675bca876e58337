"""The complete, checked form of an experiment, as the trainer reads it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Probability = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Scalar = bool | int | float | str
DATA_SET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a part of a key in the store, whichever kind that is


def below_weights(name: str) -> str:
    """`name` itself. Raises ValueError unless it names a file below the store's weights/."""
    if not all(part and part.isprintable() and not part.startswith(".") for part in name.split("/")):
        raise ValueError("expected a file below the store's weights/, such as alexnet-owt-7be5be79.pth")
    return name


WeightsFile = Annotated[str, AfterValidator(below_weights)]

ValidationMetric = Literal[
    "validation_loss", "validation_accuracy", "validation_balanced_accuracy", "validation_top5_accuracy"
]


def lower_is_better(metric: str) -> bool:
    """Whether `metric` improves downwards: losses do, accuracies do not."""
    return metric.endswith("_loss")


class Frozen(BaseModel):
    """Base of all spec models: immutable, unknown keys refused, no NaN or infinity."""

    # built when first needed: most commands need few of the models, and building all of them takes longer than `plan`
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Neutral:
    """Marks a field added after version 0.1: at this value, which never changes, identity leaves it out."""

    def __init__(self, value: object) -> None:
        self.value = value


class NoIdentity:
    """Marks a field that cannot change a run's numbers: identity leaves it out always."""


class Recipe(Frozen):
    """Which training procedure, and which version of it; a trainer refuses every other version."""

    name: Literal["classification"] = "classification"
    version: PositiveInt = 1


class Normalization(Frozen):
    """Per-channel mean and standard deviation (RGB, in units of 0..1) that the input is normalised with."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)


NORMALIZATIONS = {
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}


def _named(presets: dict[str, dict[str, Any]], what: str, model: type[BaseModel]) -> BeforeValidator:
    def expand(value: Any) -> Any:
        if isinstance(value, str):
            if value not in presets:
                raise ValueError(f"expected a {what}: {', '.join(presets)}, or its values")
            return presets[value]
        return value

    return BeforeValidator(expand, json_schema_input_type=Literal[tuple(presets)] | model)


class DataSpec(Frozen):
    """Which images a run sees and how each becomes a tensor of `crop` x `crop` pixels."""

    name: Annotated[str, NoIdentity()] = Field(
        pattern=DATA_SET_NAME, description="data set in the store, as `grid data import` named it"
    )
    fingerprint: Sha256 | None = Field(
        default=None, description="fingerprint of the data set; filled in from the store's index when a grid expands"
    )
    resize: PositiveInt = Field(default=256, description="length of the shorter side after resizing, pixels")
    crop: PositiveInt = Field(default=224, description="side of the central square that the network sees, pixels")
    normalize: Annotated[Normalization, _named(NORMALIZATIONS, "normalization", Normalization)] = Field(
        default=Normalization(), description="`half` (0.5 everywhere), `imagenet`, or mean and std"
    )
    images_per_class: PositiveInt | None = Field(
        default=None, description="use only the first n images of each class in every part; null uses all"
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}: expected at most {self.resize}")
        return self


class ModelSpec(Frozen):
    """Which network, which weights it starts from, and which of its parts stay as they are."""

    architecture: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?)?$",
        description="a torchvision classifier by name (`alexnet`), or a factory `package.module:function` "
        "(or `package.module:Class.method`) that takes num_classes=",
    )
    arguments: dict[str, Scalar] = Field(default_factory=dict, description="further keyword arguments of the model")
    source_hash: Sha256 | None = Field(
        default=None, description="hash of a factory's source; filled in when a grid expands"
    )
    weights: Annotated[WeightsFile | None, NoIdentity()] = Field(
        default=None, description="file in the store's weights/ to start from; null draws them from the seed"
    )
    weights_fingerprint: Sha256 | None = Field(
        default=None, description="SHA-256 of that file; filled in from the store when a grid expands"
    )
    freeze: Literal["none", "convolutional", "fully_connected"] | tuple[str, ...] = Field(
        default="none",
        description="part that is not trained: none, convolutional, fully_connected (with the new head), "
        "or patterns of module names such as `features.*`",
    )

    @model_validator(mode="after")
    def _weights_are_named_in_one_place(self) -> Self:
        # else the run would count as one that starts from weights, and start from random ones
        if self.weights is None and self.weights_fingerprint is not None:
            raise ValueError("a weights_fingerprint without weights: expected the file that it is of in model.weights")
        if not self.is_factory and (named := {"weights", "pretrained"} & set(self.arguments)):
            raise ValueError(
                f"{min(named)!r} among the arguments: expected a file of the store in model.weights instead"
            )
        return self

    @property
    def is_factory(self) -> bool:
        """Whether the network comes from an importable factory rather than from torchvision."""
        return ":" in self.architecture

    @property
    def short_name(self) -> str:
        """The network's name without its module: `alexnet`, or the factory's function."""
        return self.architecture.rpartition(":")[2]


class Perspective(Frozen):
    """Random perspective, as torchvision's RandomPerspective has it."""

    distortion: Probability = Field(default=0.5, description="how far corners move, as a part of half the side")
    p: Probability = Field(default=0.5, description="probability")


_GEOMETRIC = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 30.0, "perspective": {}}
_JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "report_1": _GEOMETRIC,
    "report_2": {**_GEOMETRIC, **_JITTER},
    "report_3": {**_GEOMETRIC, **_JITTER, "grayscale": 1.0},
    "report_3b": {**_JITTER, "grayscale": 1.0},
}
"""The report's pipelines. It names the transforms and no strengths: these are ours. Its third reads both ways."""


class AugmentationSpec(Frozen):
    """Random changes of the training images, drawn anew each epoch, in this order, before resize and crop."""

    horizontal_flip: Probability = Field(default=0, description="probability")
    vertical_flip: Probability = Field(default=0, description="probability")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        default=0, description="largest angle, degrees, drawn evenly from -rotation..rotation; corners turn black"
    )
    perspective: Perspective | None = None
    grayscale: Probability = Field(default=0, description="probability of 0.299 R + 0.587 G + 0.114 B, three times")
    brightness: NonNegativeFloat = Field(default=0, description="factor drawn from max(0, 1-b)..1+b")
    contrast: NonNegativeFloat = Field(default=0, description="factor drawn from max(0, 1-c)..1+c")
    saturation: NonNegativeFloat = Field(default=0, description="factor drawn from max(0, 1-s)..1+s")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0, description="turn drawn from -h..h, of 1 full turn")

    @property
    def is_geometric(self) -> bool:
        """Whether any draw moves pixels."""
        return bool(self.horizontal_flip or self.vertical_flip or self.rotation or self.perspective)

    @property
    def is_photometric(self) -> bool:
        """Whether any draw changes colours."""
        return bool(self.grayscale or self.brightness or self.contrast or self.saturation or self.hue)


class SgdSpec(Frozen):
    """Stochastic gradient descent, as torch.optim.SGD."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = Field(default=1e-3, description="learning rate for the whole batch, before the schedule")
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-5
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: got true with momentum 0, expected a momentum above 0")
        return self


class AdamWSpec(Frozen):
    """Adam with decoupled weight decay, as torch.optim.AdamW."""

    name: Literal["adamw"]
    lr: PositiveFloat = Field(default=1e-3, description="learning rate for the whole batch, before the schedule")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01


class StepSpec(Frozen):
    """The learning rate times `gamma` after every `step_size` epochs (StepLR)."""

    name: Literal["step"] = "step"
    step_size: PositiveInt = Field(default=20, description="epochs between two reductions")
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NonNegativeFloat = Field(default=0, description="epochs of linear rise from 0, step by step")


class CosineSpec(Frozen):
    """Half a cosine from the learning rate down to `lr_end` times it over all epochs."""

    name: Literal["cosine"]
    lr_end: Probability = Field(default=0, description="learning rate at the end, as a part of the first one")
    warmup_epochs: NonNegativeFloat = Field(default=0, description="epochs of linear rise from 0, step by step")


class ConstantSpec(Frozen):
    """The same learning rate in every epoch."""

    name: Literal["constant"]
    warmup_epochs: NonNegativeFloat = Field(default=0, description="epochs of linear rise from 0, step by step")


def _default_name(name: str) -> BeforeValidator:
    def fill(value: Any) -> Any:
        return {"name": name, **value} if isinstance(value, dict) and "name" not in value else value

    return BeforeValidator(fill)


OptimizerSpec = Annotated[SgdSpec | AdamWSpec, Field(discriminator="name"), _default_name("sgd")]
ScheduleSpec = Annotated[StepSpec | CosineSpec | ConstantSpec, Field(discriminator="name"), _default_name("step")]


class BestSpec(Frozen):
    """Which epoch's weights are the run's, and when training goes back to them."""

    metric: ValidationMetric = "validation_loss"
    patience: PositiveInt | None = Field(
        default=5, description="epochs without strict improvement before going back to the best; null never does"
    )
    optimizer: Literal["restore", "keep", "reset"] = Field(
        default="restore", description="the optimiser's state when going back: the best epoch's, as it is, or empty"
    )


class RestartSpec(Frozen):
    """When the loss is not finite: the epoch begins again from the best weights, with a smaller learning rate."""

    times: NonNegativeInt = Field(default=2, description="restarts before the run fails for good")
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="learning rate factor of each")


class CheckpointSpec(Frozen):
    """When state is written, and what stays of it afterwards. No part of a run's identity."""

    every: PositiveFloat = Field(default=60, description="seconds between checkpoints; one is due at epoch ends too")
    keep: Literal["best", "none", "all"] = Field(default="best", description="what stays once the result is written")


class ExperimentSpec(Frozen):
    """One complete set of hyperparameters; with a seed it is a run."""

    recipe: Recipe = Recipe()
    data: DataSpec
    model: ModelSpec
    augmentation: Annotated[AugmentationSpec, _named(AUGMENTATIONS, "pipeline", AugmentationSpec)] = Field(
        default=AugmentationSpec(), description="a named pipeline (none, report_1, …) or its values"
    )
    batch_size: PositiveInt = Field(default=256, description="images per optimiser step, over all micro-batches")
    micro_batch: PositiveInt | None = Field(
        default=None,
        description="images per forward and backward pass; null is the whole batch. Equal in the mean to the whole "
        "batch only without batch-norm and dropout, so it is part of the run's identity",
    )
    epochs: PositiveInt = Field(default=30, description="passes over the training part")
    optimizer: OptimizerSpec = SgdSpec()
    schedule: ScheduleSpec = StepSpec()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0, description="share of the target that is spread evenly over all classes"
    )
    clip_norm: PositiveFloat | None = Field(default=None, description="largest gradient norm; null does not clip")
    best: BestSpec = BestSpec()
    restart: RestartSpec = RestartSpec()
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        default="auto",
        description="arithmetic of the forward and backward pass; auto is bf16 where the device computes in it "
        "(AMX, or CUDA from compute capability 8.0 on), else fp32",
    )
    deterministic: bool = Field(default=True, description="deterministic algorithms on CUDA")
    compile: bool = Field(default=False, description="compile the model with torch.compile")
    checkpoint: Annotated[CheckpointSpec, NoIdentity()] = CheckpointSpec()

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch {self.micro_batch} is larger than batch_size {self.batch_size}: "
                f"expected at most {self.batch_size}"
            )
        return self


class RunSpec(ExperimentSpec):
    """An experiment with a seed, every fingerprint filled in: what one run trains."""

    seed: NonNegativeInt = Field(description="seed of every draw; equal seeds give equal runs")
