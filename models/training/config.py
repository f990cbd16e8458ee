"""What a recipe may say about training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count
from bloomery.models.features.splits import Share

Device = Literal["auto", "cpu", "cuda"]
Strategy = Literal["ddp", "fsdp", "tensor", "pipeline"]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AttributionMethod = Literal["integrated_gradients", "occlusion", "lime", "kernel_shap", "shapley"]
AttributionBaseline = Literal["mean", "zero", "blur"]


class Augment(Document):
    """How an image of the training part is changed, anew in every epoch."""

    flip: Annotated[bool, Field(description="left and right, half of the time")] = False
    shift: Annotated[int, Field(ge=0, description="pixels, at most, in each direction")] = 0
    rotate: Annotated[float, Field(ge=0, le=180, description="degrees, at most, either way")] = 0.0
    erase: Annotated[float, Field(ge=0, lt=1, description="the share of images that lose a rectangle")] = 0.0
    mask: Annotated[float, Field(ge=0, lt=1, description="spectrograms: share of bands and of frames, at most")] = 0.0
    mixup: Annotated[float, Field(ge=0, description="alpha; 0 for none")] = 0.0
    drop_tokens: Annotated[float, Field(ge=0, lt=1, description="text: the share of tokens that is hidden")] = 0.0


class Loop(Document):
    """One pass of the training loop: AdamW under a learning rate that follows a schedule."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2, description="batch normalisation needs two rows")] = 64
    accumulate: Annotated[Count, Field(description="batches whose gradients make one step")] = 1
    learning_rate: PositiveFloat = 3e-3
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = "one_cycle"
    warmup: Annotated[
        float | None, Field(ge=0, lt=1, description="share of the steps in which the rate rises; left out, by schedule")
    ] = None
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip_norm: Annotated[PositiveFloat | None, Field(description="of all gradients together")] = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"], Field(description="balanced: as if every class had as many rows")
    ] = "none"
    loss: Annotated[Literal["squared", "huber"], Field(description="of a regression")] = "squared"
    ema: Annotated[Share | None, Field(description="decay of a running mean of the weights, which is kept")] = None
    best_by: Annotated[
        Literal["loss", "score", "last"],
        Field(description="which figure of the validation part the best epoch is told by; last: by none"),
    ] = "loss"
    patience: Annotated[Count | None, Field(description="epochs without a better one")] = None
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        Field(description="of products; auto: bf16 where GPU or processor (AMX) has circuits for it"),
    ] = "fp32"
    compile: Annotated[bool, Field(description="torch.compile")] = False
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _has_a_best_epoch_to_wait_for(self) -> Self:
        if self.patience is not None and self.best_by == "last":
            raise ValueError("with `best_by: last` no epoch is worse than another: leave out `patience`")
        return self


class Checkpoints(Document):
    """How often the whole state of training is kept, so that a killed run goes on where it was."""

    every_steps: Count | None = None
    every_minutes: PositiveFloat = 2.0


class StartFrom(Document):
    """Weights to begin with: a registered version (`NAME@champion`, `NAME:3`) or a folder with weights.safetensors."""

    network: Annotated[
        str, Field(min_length=1, description="NAME@champion, NAME:3 or a folder, a relative one beside the recipe")
    ]
    freeze: Annotated[tuple[str, ...], Field(description="parameters whose names begin so stay as they are")] = ()
    discount: Annotated[
        float,
        Field(gt=0, le=1, description="learning rate of each layer as a share of the next one's"),
    ] = 1.0

    @property
    def is_folder(self) -> bool:
        """Names of versions have no slash."""
        return "/" in self.network or self.network in (".", "..")

    def absolute(self, folder: Path) -> Self:
        """The same with the folder's path from the root on, where one in `folder` is meant."""
        place = folder / Path(self.network).expanduser()
        if not self.is_folder and not (place / "weights.safetensors").is_file():
            return self
        return self.model_copy(update={"network": str(place.resolve())})


class Privacy(Document):
    """DP-SGD: what an outsider learns of any one training row stays within epsilon and delta."""

    epsilon: PositiveFloat
    delta: Annotated[Share, Field(description="below 1 / training rows")]
    clip_norm: Annotated[PositiveFloat, Field(description="of the gradient of each row")] = 1.0


class Range(Document):
    """Figures between `low` and `high`; whole ones if both limits are whole."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"no range lies from {self.low} to {self.high}" + (" on a log scale" if self.log else ""))
        return self


class Search(Document):
    """A search for a better score on the validation part; `space` says what may differ, by its path in the recipe."""

    trials: Count = 20
    parallel: Annotated[Count, Field(description="trials at a time, each in a process of its own")] = 1
    epochs: Annotated[Count | None, Field(description="of a trial; left out, those of the recipe")] = None
    space: Annotated[
        dict[str, Range | Annotated[tuple[Any, ...], Field(min_length=1)]],
        Field(
            default_factory=dict,
            description="`training.learning_rate: {low: 1e-4, high: 1e-2, log: true}` or a list of choices",
        ),
    ]


class Explain(Document):
    """What is told of why the trained network answers as it does, on rows of the validation part."""

    rows: Annotated[Count, Field(description="that are drawn one by one")] = 8
    sample: Annotated[Count, Field(description="rows over which weights are averaged; fewer for a large network")] = 64
    method: Annotated[
        AttributionMethod | None,
        Field(description="left out, integrated gradients, or shapley where there are no gradients"),
    ] = None
    baseline: Annotated[
        AttributionBaseline | None, Field(description="what values are compared with; left out, by the kind of rows")
    ] = None


class Training(Loop):
    """The training stage."""

    epochs: Annotated[int, Field(ge=0, description="0, and left out, for a network that comes trained")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_threads: Annotated[Count, Field(description="of the processor; the weights' bits depend on it")] = 1
    device: Device = "auto"
    devices: Annotated[Count, Field(description="processes on each node")] = 1
    nodes: Count = 1
    strategy: Annotated[Strategy, Field(description="how several devices share the work")] = "ddp"
    microbatches: Annotated[
        Count | None, Field(description="of a batch in a pipeline; left out, four for each process")
    ] = None
    launcher: Annotated[
        Literal["torchrun", "spark"],
        Field(description="what starts several processes; spark: tasks on the cluster of the recipe's `spark`"),
    ] = "torchrun"
    checkpoints: Checkpoints = Checkpoints()
    start_from: StartFrom | None = None
    privacy: Privacy | None = None
    search: Search | None = None
    slices: Annotated[
        tuple[str, ...], Field(description="columns for each of whose values the figures are told apart")
    ] = ()
    explain: Explain | None = Explain()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.search is not None and self.epochs == 0:
            raise ValueError("a search trains networks, so state `epochs`")
        return self
