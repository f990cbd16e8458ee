"""Recipe sections of the compress stage: candidates, pruning, distillation and the search for candidates.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.records.serving_device import OptionalGpuDevice
from bloomery.models.features.input_config import Count
from bloomery.models.features.splits import Share
from bloomery.models.networks.config import Dropout, Model
from bloomery.models.profiling.cpu_features import needs_reduced_range
from bloomery.models.training.config import Device, Loop, PositiveFloat

QuantizationMode = Literal["static", "dynamic"]
CalibrationMethod = Literal["minmax", "entropy", "percentile"]
WeightType = Literal["fp16", "bf16", "int8", "int4"]
Importance = Literal["magnitude", "taylor"]
Structure = Literal["units", "heads", "layers"]
Cost = Literal["macs", "parameters", "latency"]
ExtraFormat = Literal["pt2", "litert"]  # beside ONNX
SparsityCriterion = Literal["lamp", "global_magnitude", "layer_magnitude"]

# Fields that change the exported file only, and not the network in PyTorch.
_FILE_FIELDS = (
    *("quantize", "calibration_method", "reduce_range", "amx", "float_layers", "weight_only", "storage"),
    *("compute", "dimensions", "vectors"),
)
NOT_COMPRESSIBLE = ("boosted_trees", "tabular_ensemble")  # files with trees: they only lose some of their trees
PRUNABLE = ("cnn", "lenet", "resnet", "mlp", "ft_transformer", "rnn", "transformer", "gpt", "pretrained", "fused")


class Pruning(Document):
    """Structured pruning: removes a ratio of each of the `structures`, or as many as a cost target needs."""

    ratio: Annotated[
        Share | None, Field(description="share of channels and hidden units to remove, or of the named `structures`")
    ] = None
    target: Annotated[
        dict[Cost, Share] | None,
        Field(
            min_length=1,
            max_length=1,
            description="cost to reach, as a share of the trained network's; `macs: 0.25` keeps a quarter of the MACs",
        ),
    ] = None
    structures: Annotated[
        tuple[Structure, ...], Field(min_length=1, description="heads and layers: transformer, gpt and pretrained only")
    ] = ("units",)
    importance: Annotated[Importance, Field(description="taylor: first-order estimate of the change of the loss")] = (
        "magnitude"
    )
    scope: Annotated[
        Literal["layer", "global"],
        Field(
            description="global: compares importance across layers, so layers lose unequal shares; not for all kinds"
        ),
    ] = "layer"
    round_to: Annotated[
        Count,
        Field(description="16: keeps a multiple of 16 channels, since 18 channels convolve as slowly as 32"),
    ] = 1
    rounds: Annotated[Count, Field(description="pruning rounds; the fine-tuning epochs are divided among them")] = 1
    dropout: Annotated[Dropout | None, Field(description="dropout of the pruned network; default: as trained")] = None
    training: Annotated[Loop | None, Field(exclude_if=is_unset, description="default: as fine_tune")] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.ratio is None) == (self.target is None):
            raise ValueError("set either `ratio`, the share to remove, or `target`, the cost to reach")
        if self.round_to > 1 and self.scope == "global":
            raise ValueError("`round_to` needs `scope: layer`: with `scope: global` layers lose unequal shares")
        return self


def _require_text(pattern: Any) -> Any:
    """YAML reads an unquoted 2:4 as 124, a number to the base of 60."""
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        raise ValueError('a pattern is a text such as "2:4", in quotes: without them YAML reads a number')
    return pattern


class Sparsification(Document):
    """Unstructured pruning: weights that become zero and stay zero, in rounds with fine-tuning in between."""

    density: Annotated[float | None, Field(gt=0, lt=1, description="final share of nonzero weights")] = None
    pattern: Annotated[
        str | None,
        BeforeValidator(_require_text),
        Field(
            pattern=r"^[1-9][0-9]?:[1-9][0-9]?$",
            description='N:M sparsity instead of a density; "2:4" keeps two of every four adjacent inputs',
        ),
    ] = None
    criterion: Annotated[
        SparsityCriterion,
        Field(
            description="lamp: layer-adaptive scores; global_magnitude: magnitude across layers; layer_magnitude: "
            "the same density in each layer"
        ),
    ] = "lamp"
    rounds: Count = 4

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.density is None) == (self.pattern is None):
            raise ValueError("set either `density`, the share of weights to keep, or `pattern`")
        if self.n_of_m is not None:
            n, m = self.n_of_m
            if n >= m:
                raise ValueError(
                    f"pattern {self.pattern} removes nothing: the first number must be smaller than the second"
                )
            if self.criterion != "lamp":
                raise ValueError("`criterion` needs a `density`: a pattern compares the inputs of each group only")
        return self

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M of the pattern: N of M adjacent weights stay."""
        if self.pattern is None:
            return None
        n, m = map(int, self.pattern.split(":"))
        return n, m


class Distillation(Document):
    """Weights of the losses by which a compressed network learns from the trained one, the teacher."""

    weight: Annotated[float, Field(ge=0, le=1, description="of the soft targets; the labels have the rest")] = 0.7
    temperature: Annotated[
        float, Field(gt=0, description="softens the probabilities; above 1 small ones count more")
    ] = 3.0
    feature_weight: Annotated[
        float, Field(ge=0, description="of feature matching: similarities of rows in front of the head")
    ] = 0.0
    attention_weight: Annotated[
        float, Field(ge=0, description="of attention transfer: image positions, or relations of steps")
    ] = 0.0


class Student(Document):
    """A network of any kind and size, trained by distillation from the trained network and by the labels.

    It is new, or starts as some `layers` of a trained network of kind pretrained.
    """

    model: Annotated[Model | None, Field(description="a new network")] = None
    layers: Annotated[
        Count | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None,
        Field(
            exclude_if=is_unset,
            description="of the trained network: how many, at equal distances, or their numbers from 0",
        ),
    ] = None
    training: Annotated[Loop | None, Field(description="default: as fine_tune")] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.model is None) == (self.layers is None):
            raise ValueError("set either `model`, a new network, or `layers`, those of the trained network that stay")
        if isinstance(self.layers, tuple) and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("`layers` numbers each layer once, in rising order")
        return self


def _expand_ratio(value: Any) -> Any:
    """`prune: 0.5` is short for `prune: {ratio: 0.5}`."""
    return {"ratio": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class CandidateSpec(Document):
    """How one candidate is built from the trained network. Its steps run in the order of the fields."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    trim_vocabulary: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            exclude_if=is_unset,
            description="pretrained text: share of the training rows' tokens that keep embeddings; 1: all that occur",
        ),
    ] = None
    student: Annotated[Student | None, Field(description="a network that replaces the trained one")] = None
    prune: Annotated[
        Pruning | None,
        BeforeValidator(_expand_ratio, json_schema_input_type=Share | Pruning | None),
        Field(description="structured pruning; 0.5 removes half of the channels and hidden units"),
    ] = None
    factorize: Annotated[
        Share | None,
        Field(description="low-rank factorization: share of the parameters that large matrices lose"),
    ] = None
    sparsify: Annotated[
        Sparsification | None, Field(description="unstructured pruning; reduces the stored size only, not the latency")
    ] = None
    num_clusters: Annotated[
        int | None, Field(ge=2, le=255, description="weight clustering: distinct nonzero values of a layer's weights")
    ] = None
    quantize: Annotated[
        QuantizationMode | None,
        Field(description="8-bit arithmetic; static: activation ranges from calibration, dynamic: from each batch"),
    ] = None
    calibration_method: Annotated[
        CalibrationMethod, Field(description="static: how activation ranges follow from the calibration rows")
    ] = "minmax"
    reduce_range: Annotated[
        bool | None, Field(description="7-bit weights; default: if the compressing processor has no VNNI")
    ] = None
    amx: Annotated[
        bool, Field(description="static: convolutions use AMX; faster on processors that have it, slower on others")
    ] = False
    float_layers: Annotated[
        Annotated[float, Field(ge=0)] | Literal["first"] | None,
        Field(
            description="limit on the rise of the error rate or RMSE; as few layers as it needs stay in float. "
            "first: the layer that reads the inputs stays in float"
        ),
    ] = None
    quantization_aware: Annotated[
        bool, Field(description="static: quantization-aware training, with the settings of fine_tune")
    ] = False
    weight_only: Annotated[
        WeightType | None, Field(description="type in which weights are stored; arithmetic stays in float")
    ] = None
    compute: Annotated[
        Literal["fp16"] | None,
        Field(exclude_if=is_unset, description="type of the arithmetic; built where `serve` computes on a GPU only"),
    ] = None
    dimensions: Annotated[
        Count | None,
        Field(exclude_if=is_unset, description="embedding: so many first values of a vector are its result"),
    ] = None
    vectors: Annotated[
        Literal["int8"] | None,
        Field(exclude_if=is_unset, description="embedding: values of vectors are integers from -127 to 127"),
    ] = None
    storage: Annotated[
        Literal["entropy_coded", "zstd"] | None,
        Field(description="file format that ships; entropy_coded: smallest, decompressed when the bento starts"),
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.quantize is not None and self.weight_only is not None:
            raise ValueError("`quantize` stores weights in 8 bits already: leave out `weight_only`")
        if self.compute is not None and not (self.quantize is None and self.weight_only is None):
            raise ValueError("`compute` stores weights in its own type: leave out `quantize` and `weight_only`")
        if self.trim_vocabulary is not None and self.new_network is not None:
            raise ValueError("`trim_vocabulary` needs the trained network: a student with a `model` replaces it")
        fields = type(self).model_fields
        static_only = ("quantization_aware", "calibration_method", "amx")
        for name in (*static_only, "reduce_range", "float_layers"):
            modes = ("static",) if name in static_only else ("static", "dynamic")
            if getattr(self, name) != fields[name].default and self.quantize not in modes:
                raise ValueError(f"`{name}` needs `quantize: {' or '.join(modes)}`")
        return self

    @property
    def before_quantization(self) -> Self:
        """The spec of the float network, without a name. Candidates that share it are trained once."""
        fields = type(self).model_fields
        # Quantization-aware training depends on the number of levels and on which layers are rounded.
        is_trained = {
            "reduce_range": self.quantization_aware,
            "float_layers": self.quantization_aware and self.float_layers == "first",
        }
        reset = [name for name in _FILE_FIELDS if not is_trained.get(name)]
        return self.model_copy(update={"name": "", **{name: fields[name].default for name in reset}})

    def resolve_reduce_range(self, flags: Collection[str]) -> Self:
        """The spec with `reduce_range` set for a processor with these `flags` (cpu_features.py), if it is quantized."""
        if self.quantize is None or self.reduce_range is not None:
            return self
        return self.model_copy(update={"reduce_range": needs_reduced_range(flags)})

    @property
    def is_baseline(self) -> bool:
        """Whether this is the network as trained, in float and uncompressed."""
        steps = (self.quantize, self.weight_only, self.compute, self.storage, self.dimensions, self.vectors)
        return not self.changes_network and all(step is None for step in steps)

    @property
    def is_float(self) -> bool:
        """Whether its weights are those of the PyTorch network, without quantization."""
        return (self.quantize, self.weight_only, self.compute) == (None, None, None)

    @property
    def new_network(self) -> Model | None:
        """The network that replaces the trained one, if it does not start from its layers."""
        return None if self.student is None else self.student.model

    @property
    def changes_network(self) -> bool:
        """Whether the network itself differs from the trained one, before quantization."""
        steps = (self.trim_vocabulary, self.student, self.prune, self.factorize, self.sparsify, self.num_clusters)
        return self.quantization_aware or any(step is not None for step in steps)


class CandidateSearch(Document):
    """A search for further candidates: what to remove, how much of it, and by which importance."""

    trials: Annotated[Count, Field(description="networks that are tried, each in float and in 8 bits")] = 12
    timeout_minutes: Annotated[
        PositiveFloat | None,
        Field(description="starts no trial after this time; the result then depends on the machine"),
    ] = None
    max_drop: Annotated[
        Share, Field(description="validation limit on the drop of accuracy or the relative rise of RMSE")
    ] = 0.05
    keep: Annotated[Count, Field(description="most candidates to keep, all from the Pareto front")] = 8


def _expand_search(value: Any) -> Any:
    """`search: true` searches with all defaults."""
    return {} if value is True else None if value is False else value


class Compression(Document):
    """The compress stage: its candidates and how they are trained."""

    candidates: Annotated[
        tuple[CandidateSpec, ...] | None,
        Field(min_length=1, description="default: by the kind of network"),
    ] = None
    fine_tune: Annotated[
        Loop, Field(description="training after each step; its epochs are those of all rounds together")
    ] = Loop(epochs=10, learning_rate=1e-3)
    distill: Annotated[
        Distillation | None, Field(description="null: compressed networks learn from the labels only")
    ] = Distillation()
    search: Annotated[
        CandidateSearch | None,
        BeforeValidator(_expand_search, json_schema_input_type=bool | CandidateSearch | None),
        Field(description="`compression: auto` is short for `search: true`"),
    ] = None
    extra_formats: Annotated[
        tuple[ExtraFormat, ...],
        Field(description="pt2: a torch.export program, litert: a LiteRT file; of float candidates"),
    ] = ()
    calibration_rows: Count = 500
    latency_rounds: Count = 300
    device: Annotated[Device, Field(description="for fine-tuning; `serve.device` is that of latencies")] = "auto"
    serving_device: Annotated[OptionalGpuDevice, Field(description="set by the recipe's `serve`")] = None

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.candidates is None:
            return self
        names = [candidate.name for candidate in self.candidates]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"duplicate candidate names: {', '.join(duplicates)}")
        if not any(candidate.is_baseline for candidate in self.candidates):
            raise ValueError("one candidate must be the network as trained (nothing but a name), as the baseline")
        return self


def _expand_auto(value: Any) -> Any:
    """`compression: auto` searches for candidates with all defaults."""
    return {"search": True} if value == "auto" else value


CompressionOrAuto = Annotated[
    Compression, BeforeValidator(_expand_auto, json_schema_input_type=Literal["auto"] | Compression)
]
