"""What a recipe may say about candidates.

Read by the command line before anything heavy is imported, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count
from bloomery.models.features.splits import Share
from bloomery.models.networks.config import Cnn, Dropout, Gpt, LeNet, Mlp, Model, ResNet, Transformer
from bloomery.models.profiling.cpu_features import needs_reduced_range
from bloomery.models.training.config import Device, Loop, PositiveFloat

QuantizationMode = Literal["static", "dynamic"]
CalibrationMethod = Literal["minmax", "entropy", "percentile"]
WeightType = Literal["fp16", "bf16", "int8", "int4"]
Importance = Literal["magnitude", "taylor"]
Structure = Literal["units", "heads", "layers"]
Cost = Literal["macs", "parameters", "latency"]
ExtraFormat = Literal["pt2", "litert"]  # beside ONNX
SparsityCriterion = Literal["lamp", "global", "layer"]  # over what weights are compared
_OF_THE_FILE = ("quantize", "calibrate", "reduce_range", "tiles", "float_layers", "weights", "stored")
# What networks attend to, and can only learn from one that attends to the same.
_ATTENDED = {
    **dict.fromkeys(("cnn", "lenet", "resnet"), "places of an image"),
    **dict.fromkeys(("transformer", "gpt", "ft_transformer"), "steps or columns"),
}
PRUNABLE = ("cnn", "lenet", "resnet", "mlp", "ft_transformer", "rnn", "transformer", "gpt")


class Pruning(Document):
    """What leaves the network for good: a share of each of the `parts`, or as much as brings a cost to a target."""

    share: Annotated[Share | None, Field(description="of channels and hidden units, or of what `parts` names")] = None
    target: Annotated[
        dict[Cost, Share] | None,
        Field(min_length=1, max_length=1, description="`macs: 0.25` for a quarter of the multiplications as trained"),
    ] = None
    parts: Annotated[
        tuple[Structure, ...], Field(min_length=1, description="heads and layers: of a transformer or gpt")
    ] = ("units",)
    importance: Annotated[Importance, Field(description="taylor: by what the loss would change without it")] = (
        "magnitude"
    )
    scope: Annotated[
        Literal["layer", "network"], Field(description="network: layers that matter less lose more; of chained layers")
    ] = "layer"
    multiple_of: Annotated[
        Count,
        Field(
            description="16: whole blocks of channels stay, since convolutions take as long for 18 of them as for 32"
        ),
    ] = 1
    rounds: Annotated[Count, Field(description="in which it leaves, each with its part of the fine-tuning")] = 1
    dropout: Annotated[
        Dropout | None, Field(description="of what is left, which may want less of it; left out, as trained")
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.share is None) == (self.target is None):
            raise ValueError("say either which `share` leaves, or the `target` that is to be reached")
        if self.multiple_of > 1 and self.scope == "network":
            raise ValueError("`multiple_of` is of layers that lose alike: leave out `scope: network`")
        return self


def find_pruning_obstacle(model: Model, how: Pruning) -> str | None:
    """Why a network of this config cannot lose what `how` says, if it cannot."""
    if model.kind not in PRUNABLE:
        return f"of a network of kind {model.kind} it is not known what can leave"
    beyond = [part for part in how.parts if part != "units"]
    if beyond and not isinstance(model, Transformer | Gpt):
        return f"a {model.kind} has no {' and '.join(beyond)} that could leave: they are a transformer's and a gpt's"
    if how.dropout is not None and "dropout" not in type(model).model_fields:
        return f"a {model.kind} has no dropout that could change"
    if how.multiple_of > 1 and not isinstance(model, Cnn | LeNet | ResNet):
        return f"a {model.kind} has no channels of which `multiple_of` could stay"
    is_chain = isinstance(model, LeNet | Mlp) or (isinstance(model, Cnn) and max(model.convolutions_of_blocks) == 1)
    if how.scope == "network" and not is_chain:
        return f"the layers of a {model.kind} share widths in its config, so none can lose more: say `scope: layer`"
    return None


def _pattern_from(stated: Any) -> Any:
    """YAML reads 2:4 without quotes as 124, a number to the base of 60."""
    if isinstance(stated, int) and not isinstance(stated, bool):
        raise ValueError('a pattern is a text such as "2:4", in quotes: without them YAML reads a number')
    return stated


class Sparsification(Document):
    """Which weights become zero and stay so, in rounds between which the network learns."""

    density: Annotated[
        float | None, Field(gt=0, lt=1, description="the share of weights that is not zero in the end")
    ] = None
    pattern: Annotated[
        str | None,
        BeforeValidator(_pattern_from),
        Field(
            pattern=r"^[1-9][0-9]?:[1-9][0-9]?$",
            description='in place of a density "2:4": two of each four inputs side by side are not zero in the end',
        ),
    ] = None
    scope: Annotated[
        SparsityCriterion,
        Field(description="lamp: by what each is of its layer; global: by magnitude; layer: that share of each layer"),
    ] = "lamp"
    rounds: Count = 4

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.density is None) == (self.pattern is None):
            raise ValueError("say either the `density` that is to be left, or the `pattern`")
        if self.of_each is not None:
            kept, group = self.of_each
            if kept >= group:
                raise ValueError(f"a pattern of {self.pattern} leaves everything: the first number is the smaller one")
            if self.scope != "lamp":
                raise ValueError("`scope` is of a `density`: a pattern compares the inputs of each group alone")
        return self

    @property
    def of_each(self) -> tuple[int, int] | None:
        """Of the pattern, how many weights stay and of how many."""
        if self.pattern is None:
            return None
        kept, group = map(int, self.pattern.split(":"))
        return kept, group


class Distillation(Document):
    """How much a smaller network learns from what the one as trained answers and holds inside, beside the labels."""

    weight: Annotated[float, Field(ge=0, le=1, description="of the answers against the labels")] = 0.7
    temperature: Annotated[float, Field(gt=0, description="above 1 what is less likely counts for more")] = 3.0
    features: Annotated[float, Field(ge=0, description="of which rows are alike in front of the head")] = 0.0
    attention: Annotated[
        float, Field(ge=0, description="of the places of an image that are heeded, or of how steps relate")
    ] = 0.0


def find_distillation_obstacle(teacher: Model, student: Model, how: Distillation) -> str | None:
    """Why a network of one config cannot teach one of the other what `how` says, if it cannot."""
    for model in (teacher, student):
        if how.features and model.kind not in PRUNABLE:
            return f"what a network of kind {model.kind} has in front of its head is not known: leave out `features`"
        if how.attention and model.kind not in _ATTENDED:
            return f"a network of kind {model.kind} has no attention that is known: leave out `attention`"
    if how.attention and (mine := _ATTENDED[student.kind]) != (taught := _ATTENDED[teacher.kind]):
        return f"a {student.kind} attends to {mine} and a {teacher.kind} to {taught}: leave out `attention`"
    return None


class Student(Document):
    """A network of any kind and size that is trained anew, by the one as trained and by the labels."""

    model: Model
    training: Annotated[Loop | None, Field(description="left out, as fine_tune")] = None


def _as_prune(stated: Any) -> Any:
    """`prune: 0.5` says which share."""
    return {"share": stated} if isinstance(stated, int | float) and not isinstance(stated, bool) else stated


class CandidateSpec(Document):
    """How one candidate is made from the trained network: what is stated is done in the order that it has here."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    student: Annotated[Student | None, Field(description="another network, which takes its place")] = None
    prune: Annotated[
        Pruning | None,
        BeforeValidator(_as_prune, json_schema_input_type=Share | Pruning | None),
        Field(description="0.5 for half of the channels and hidden units"),
    ] = None
    factorise: Annotated[
        Share | None, Field(description="share of each large matrix that leaves when two thin ones take its place")
    ] = None
    sparse: Annotated[Sparsification | None, Field(description="zeros, which serve the stored size alone")] = None
    values: Annotated[
        int | None, Field(ge=2, le=255, description="how many values the weights of a layer have, besides 0")
    ] = None
    quantize: Annotated[
        QuantizationMode | None,
        Field(description="to 8 bits; static: activations in ranges seen before, dynamic: as each row has them"),
    ] = None
    calibrate: Annotated[CalibrationMethod, Field(description="static: which range, of what was seen")] = "minmax"
    reduce_range: Annotated[
        bool | None, Field(description="7 bits of a weight; left out: if the processor that compresses has no VNNI")
    ] = None
    tiles: Annotated[
        bool, Field(description="static: convolutions are quicker on processors with AMX, and slower on others")
    ] = False
    float_layers: Annotated[
        Annotated[float, Field(ge=0)] | Literal["first"] | None,
        Field(
            description="as few layers stay in float as keep the rise of errors, or of RMSE, at most at this; "
            "first: the one that reads the inputs"
        ),
    ] = None
    aware: Annotated[bool, Field(description="static: learns, as fine_tune says, while everything is rounded")] = False
    weights: Annotated[WeightType | None, Field(description="how they are stored, while arithmetic stays in float")] = (
        None
    )

    stored: Annotated[
        Literal["coded", "zstd"] | None,
        Field(description="the form that ships; coded: the fewest bytes, which are unpacked as the bento starts"),
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.quantize is not None and self.weights is not None:
            raise ValueError("`quantize` stores weights in 8 bits already: leave out `weights`")
        fields = type(self).model_fields
        for name in ("aware", "calibrate", "reduce_range", "tiles", "float_layers"):
            needed = ("static",) if name in ("aware", "calibrate", "tiles") else ("static", "dynamic")
            if getattr(self, name) != fields[name].default and self.quantize not in needed:
                raise ValueError(f"`{name}` is of a candidate with `quantize: {' or '.join(needed)}`")
        return self

    @property
    def in_float(self) -> Self:
        """The same before it is quantized, under no name: what two candidates are made of alike."""
        fields = type(self).model_fields
        # What learns while everything is rounded learns otherwise in other levels, and where a layer is not rounded.
        learnt = {"reduce_range": self.aware, "float_layers": self.aware and self.float_layers == "first"}
        of_the_file = [one for one in _OF_THE_FILE if not learnt.get(one)]
        return self.model_copy(update={"name": "", **{one: fields[one].default for one in of_the_file}})

    def for_processor(self, flags: Collection[str]) -> Self:
        """The same, with `reduce_range` stated if its arithmetic is in 8 bits; `flags` as `processor.py` takes them."""
        if self.quantize is None or self.reduce_range is not None:
            return self
        return self.model_copy(update={"reduce_range": needs_reduced_range(flags)})

    @property
    def is_as_trained(self) -> bool:
        return not self.is_smaller and (self.quantize, self.weights, self.stored) == (None, None, None)

    @property
    def is_float(self) -> bool:
        """Whether its weights are those of a network in PyTorch, and not of few bits."""
        return (self.quantize, self.weights) == (None, None)

    @property
    def is_smaller(self) -> bool:
        """Whether it is another network than the one as trained, before it is quantized."""
        stated = (self.student, self.prune, self.factorise, self.sparse, self.values)
        return self.aware or any(one is not None for one in stated)


def default_candidates(
    kind: str,
    how: QuantizationMode | None = None,
    *,
    weights_alone: bool = False,
    tiles: bool = False,
) -> tuple[CandidateSpec, ...]:
    """The candidates that are worth making of a network of `kind`, where the recipe names none.

    `how` it is quantized follows from the kind, unless it is stated. `weights_alone` says that its arithmetic has no
    8-bit kernels, as that of GRUs and Elman's networks: then its weights are stored in 8 bits. `tiles` says that the
    processor has matrix tiles (`processor.py`).
    """
    # Recurrent cells and attention have no 8-bit kernels for activations in fixed ranges.
    how = how or ("static" if kind in ("cnn", "lenet", "resnet", "mlp") else "dynamic")
    quantized = {"quantize": how, "tiles": tiles and how == "static"}
    in_8_bits: dict[str, Any] = {"weights": "int8"} if weights_alone else quantized
    plain = (CandidateSpec(name="fp32"), CandidateSpec(name="int8", **in_8_bits))
    if kind not in PRUNABLE:
        return plain
    return (
        *plain,
        CandidateSpec(name="pruned", prune=Pruning(share=0.5)),
        CandidateSpec(name="pruned-int8", prune=Pruning(share=0.5), **in_8_bits),
    )


class CandidateSearch(Document):
    """A search for more candidates than are named: what leaves, how much of it, and by which measure."""

    trials: Annotated[Count, Field(description="smaller networks that are tried, each also in 8 bits")] = 12
    minutes: Annotated[
        PositiveFloat | None,
        Field(description="after which no further one begins; which are tried depends on the machine then"),
    ] = None
    worst_drop: Annotated[
        Share, Field(description="on the validation part, of accuracy, or as a share of RMSE: worse ones are not kept")
    ] = 0.05
    keep: Annotated[Count, Field(description="of those that none is better than, at most")] = 8


def _as_explore(stated: Any) -> Any:
    """`explore: true` searches with everything left as it is."""
    return {} if stated is True else None if stated is False else stated


class Compression(Document):
    """Which candidates the compress stage makes."""

    candidates: Annotated[
        tuple[CandidateSpec, ...] | None,
        Field(min_length=1, description="left out, those that suit the kind of network"),
    ] = None
    fine_tune: Annotated[Loop, Field(description="of what has lost something; its epochs are those of all rounds")] = (
        Loop(epochs=10, learning_rate=1e-3)
    )
    distill: Annotated[Distillation | None, Field(description="null: smaller networks learn from the labels alone")] = (
        Distillation()
    )
    explore: Annotated[
        CandidateSearch | None,
        BeforeValidator(_as_explore, json_schema_input_type=bool | CandidateSearch | None),
        Field(description="`compression: auto` is the same as `explore: true`"),
    ] = None
    also: Annotated[
        tuple[ExtraFormat, ...],
        Field(description="pt2: a program of torch.export, litert: a file for LiteRT; of candidates in float"),
    ] = ()
    calibration_rows: Count = 500
    latency_rounds: Count = 300
    device: Annotated[Device, Field(description="on which smaller networks learn; times are the processor's")] = "auto"

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.candidates is None:
            return self
        names = [candidate.name for candidate in self.candidates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"candidate named twice: {', '.join(twice)}")
        if not any(candidate.is_as_trained for candidate in self.candidates):
            raise ValueError("one candidate must be the network as trained (nothing but a name) to compare with")
        return self


def _auto_is_short(stated: Any) -> Any:
    """`compression: auto` searches for candidates, with everything left as it is."""
    return {"explore": True} if stated == "auto" else stated


CompressionOrAuto = Annotated[
    Compression, BeforeValidator(_auto_is_short, json_schema_input_type=Literal["auto"] | Compression)
]
