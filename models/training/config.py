"""The `training` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.records.scores import Score
from bloomery.models.features.input_config import Count
from bloomery.models.features.splits import Share
from bloomery.models.training.transfer_config import Freeze, Lora, StartFrom

Device = Literal["auto", "cpu", "cuda"]
Strategy = Literal["ddp", "fsdp", "tensor", "pipeline"]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AttributionMethod = Literal["integrated_gradients", "occlusion", "lime", "kernel_shap", "shapley"]
AttributionBaseline = Literal["mean", "zero", "blur"]


Schedule = Literal["one_cycle", "cosine", "linear", "constant"]
BestBy = Literal["loss", "score", "last"]


class Augment(Document):
    """Augmentation of the training split, drawn again in every epoch."""

    flip: Annotated[bool, Field(description="mirror left and right, half of the images")] = False
    shift: Annotated[int, Field(ge=0, description="maximum shift in pixels, in each direction")] = 0
    rotate: Annotated[float, Field(ge=0, le=180, description="maximum rotation in degrees, in either direction")] = 0.0
    erase: Annotated[float, Field(ge=0, lt=1, description="fraction of images with an erased rectangle")] = 0.0
    mask: Annotated[
        float, Field(ge=0, lt=1, description="spectrograms: maximum fraction of masked bands and frames")
    ] = 0.0
    mixup: Annotated[float, Field(ge=0, description="alpha; 0: none")] = 0.0
    drop_tokens: Annotated[float, Field(ge=0, lt=1, description="text: fraction of dropped tokens")] = 0.0


class Loop(Document):
    """Options of the training loop: AdamW with a learning rate schedule."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2, description="batch normalisation needs two rows")] = 64
    accumulate: Annotated[Count, Field(description="batches whose gradients are accumulated for one step")] = 1
    learning_rate: PositiveFloat = 3e-3
    schedule: Schedule = "one_cycle"
    warmup: Annotated[
        float | None, Field(ge=0, lt=1, description="fraction of warm-up steps; default: by schedule")
    ] = None
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip_norm: Annotated[PositiveFloat | None, Field(description="maximum norm of all gradients together")] = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"], Field(description="balanced: weight classes inversely to their frequency")
    ] = "none"
    loss: Annotated[Literal["squared", "huber"], Field(description="for a regression")] = "squared"
    temperature: Annotated[
        PositiveFloat | None,
        Field(exclude_if=is_unset, description="embedding: divides the cosines; default: 0.05"),
    ] = None
    matryoshka: Annotated[
        tuple[Count, ...] | None,
        Field(
            exclude_if=is_unset,
            min_length=1,
            description="embedding: lengths to which vectors can be cut; each is trained as the complete vector",
        ),
    ] = None
    ema: Annotated[
        Share | None,
        Field(description="decay of an exponential moving average of the weights, which becomes the result"),
    ] = None
    best_by: Annotated[BestBy, Field(description="which validation metric selects the best epoch; last: none")] = "loss"
    patience: Annotated[Count | None, Field(description="stop after so many epochs without improvement")] = None
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        Field(description="of matrix products; auto: bf16 if the GPU or CPU (AMX) supports it"),
    ] = "fp32"
    compile: Annotated[bool, Field(description="torch.compile")] = False
    length_bucketing: Annotated[
        bool | None,
        Field(
            exclude_if=is_unset,
            description="batches of rows of similar length, for text and padded sequences; default: of pretrained text",
        ),
    ] = None
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _has_a_best_epoch_to_wait_for(self) -> Self:
        if self.patience is not None and self.best_by == "last":
            raise ValueError("`patience` needs a metric, but `best_by` is last; leave `patience` out")
        return self


VECTOR_OPTIONS = ("temperature", "matryoshka")  # of the contrastive loss, also in fine-tuning

Objective = Literal["task", "masked_tokens", "contrastive"]


class Stage(Document):
    """A part of a training. An omitted option is that of the training."""

    epochs: Count
    objective: Annotated[
        Objective, Field(description="masked_tokens and contrastive learn from rows without their labels")
    ] = "task"
    freeze: Freeze | None = None
    discount: Annotated[float | None, Field(gt=0, le=1)] = None
    batch_size: Annotated[int | None, Field(ge=2)] = None
    accumulate: Count | None = None
    learning_rate: PositiveFloat | None = None
    schedule: Schedule | None = None
    warmup: Annotated[float | None, Field(ge=0, lt=1)] = None
    weight_decay: Annotated[float | None, Field(ge=0)] = None
    clip_norm: PositiveFloat | None = None
    label_smoothing: Annotated[float | None, Field(ge=0, lt=1)] = None
    ema: Share | None = None
    best_by: BestBy | None = None
    patience: Count | None = None
    augment: Augment | None = None


class Checkpoints(Document):
    """How often the training state is saved, from which a killed run resumes."""

    every_steps: Count | None = None
    every_minutes: PositiveFloat = 2.0


class Privacy(Document):
    """DP-SGD with an (epsilon, delta) privacy guarantee for every training row."""

    epsilon: PositiveFloat
    delta: Annotated[Share, Field(description="below 1 / number of training rows")]
    clip_norm: Annotated[PositiveFloat, Field(description="maximum norm of the gradient of each row")] = 1.0


class Range(Document):
    """Numbers between `low` and `high`; integers if both limits are integers."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"the range from {self.low} to {self.high} is empty"
                + (" or not positive, as `log` needs" if self.log else "")
            )
        return self


class Search(Document):
    """A hyperparameter search by validation score; `space` maps paths in the recipe to candidates."""

    trials: Count = 20
    parallel: Annotated[Count, Field(description="parallel trials, each in its own process")] = 1
    epochs: Annotated[Count | None, Field(description="epochs of a trial; default: those of the recipe")] = None
    space: Annotated[
        dict[str, Range | Annotated[tuple[Any, ...], Field(min_length=1)]],
        Field(
            default_factory=dict,
            description="`training.learning_rate: {low: 1e-4, high: 1e-2, log: true}` or a list of choices",
        ),
    ]


class Explain(Document):
    """Explanations of the trained network's predictions on rows of the validation split."""

    rows: Annotated[Count, Field(description="number of rows with a plot of their own")] = 8
    sample: Annotated[Count, Field(description="rows for averaged attributions; fewer for a large network")] = 64
    method: Annotated[
        AttributionMethod | None,
        Field(description="default: integrated gradients, or shapley if the network has no gradients"),
    ] = None
    baseline: Annotated[
        AttributionBaseline | None, Field(description="reference input; default: by the kind of rows")
    ] = None


class OutOfScope(Document):
    """Decides more rows for one class, that of rows which belong to none of the others.

    A number is added to its logit: the largest at which the accuracy of the other classes' validation rows drops by at
    most `max_drop`. It becomes part of the network.
    """

    label: Annotated[int | str, Field(description="the class of rows out of scope")]
    max_drop: Annotated[
        float, Field(ge=0, lt=1, description="largest loss of accuracy on validation rows of the other classes")
    ] = 0.002


def _is_empty(value: Freeze | tuple[Stage, ...]) -> bool:
    return value == ()


def _is_one(value: float) -> bool:
    return value == 1


class Training(Loop):
    """The options of the training stage."""

    epochs: Annotated[int, Field(ge=0, description="0 or omitted for an imported network and boosted trees")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_threads: Annotated[Count, Field(description="CPU threads; the bits of the weights depend on it")] = 1
    device: Device = "auto"
    devices: Annotated[Count, Field(description="processes per node")] = 1
    nodes: Count = 1
    strategy: Annotated[Strategy, Field(description="how the work is distributed over several devices")] = "ddp"
    microbatches: Annotated[Count | None, Field(description="per batch of a pipeline; default: four per process")] = (
        None
    )
    launcher: Annotated[
        Literal["torchrun", "spark"],
        Field(description="how processes are started; spark: as tasks on the cluster of the recipe's `spark`"),
    ] = "torchrun"
    checkpoints: Checkpoints = Checkpoints()
    start_from: StartFrom | None = None
    freeze: Annotated[
        Freeze,
        Field(
            exclude_if=_is_empty,
            description="parameters that are not trained: name prefixes, `embeddings`, `body` (all but the head), or "
            "a number of layers, with the embeddings before them",
        ),
    ] = ()
    discount: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            exclude_if=_is_one,
            description="learning rate of each layer as a fraction of the next layer's",
        ),
    ] = 1.0
    lora: Annotated[
        Lora | None, Field(exclude_if=is_unset, description="adapters learn in place of the weights before the head")
    ] = None
    stages: Annotated[
        tuple[Stage, ...],
        Field(exclude_if=_is_empty, description="parts that follow each other, with options of their own"),
    ] = ()
    out_of_scope: Annotated[OutOfScope | None, Field(exclude_if=is_unset)] = None
    privacy: Privacy | None = None
    search: Search | None = None
    slices: Annotated[
        tuple[str, ...], Field(description="columns; metrics are also reported for each of their values")
    ] = ()
    explain: Explain | None = Explain()
    baselines: Annotated[
        bool, Field(description="fit simple models to the same rows, which the network is compared with")
    ] = True
    score: Annotated[Score | None, Field(description="set by the recipe's `score`; not written here")] = None

    @model_validator(mode="after")
    def _has_consistent_stages(self) -> Self:
        if self.stages and self.epochs:
            raise ValueError("`stages` have epochs of their own; leave `epochs` of the training out")
        if self.stages and self.stages[-1].objective != "task":
            raise ValueError("the last of the `stages` has to learn the task; add one without `objective`")
        for number, training in enumerate(self.parts, 1):
            if training.patience is not None and training.best_by == "last":
                raise ValueError(f"stage {number}: `patience` needs a metric, but `best_by` is last")
        return self

    @property
    def num_epochs(self) -> int:
        """The epochs of all stages, or of the training without stages."""
        return sum(stage.epochs for stage in self.stages) if self.stages else self.epochs

    @property
    def pretrains(self) -> bool:
        """Whether a stage learns from rows without their labels."""
        return any(stage.objective != "task" for stage in self.stages)

    def without_labels(self) -> Training:
        """The options of a self-supervised stage, whose module augments rows itself, has no score, and has hooks."""
        best_by: BestBy = "loss" if self.best_by == "score" else self.best_by
        return self.model_copy(update={"augment": Augment(), "best_by": best_by, "compile": False})

    @property
    def parts(self) -> tuple[Training, ...]:
        """The options of each stage. Without stages, the training itself is the only part."""
        if not self.stages:
            return (self,)
        return tuple(self.model_copy(update={"stages": (), **_overrides(stage)}) for stage in self.stages)


def _overrides(stage: Stage) -> dict[str, Any]:
    """The options of the training that the stage replaces."""
    options = {name: getattr(stage, name) for name in Stage.model_fields if name != "objective"}
    return {name: value for name, value in options.items() if value is not None}
