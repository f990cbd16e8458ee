"""The `model` section of a recipe, by kind of network."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count
from bloomery.models.networks.fused_config import FusedOptions
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.networks.token_bag_config import TokenBag

Dropout = Annotated[float, Field(ge=0, lt=1)]
HeadWidth = Annotated[Count | None, Field(description="default: `width` divided by the number of heads")]
Widths = tuple[Count, Count, Count, Count]


class Cnn(Document):
    """Blocks of convolution, batch normalisation, ReLU and 2 x 2 max pooling, then one hidden layer.

    `hidden` is the width of the hidden layer. A `strided` convolution needs a quarter of the work of one with pooling,
    but discards information.
    """

    kind: Literal["cnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    kernel_size: Literal[1, 3, 5, 7] = 3
    convolutions: Annotated[
        Count | tuple[Count, ...], Field(description="per block; `[1, 2]` sets the number of each block")
    ] = 1
    strided: Annotated[
        int,
        Field(ge=0, description="number of first blocks that halve the image by a stride instead of pooling"),
    ] = 0
    hidden: Annotated[int, Field(ge=0, description="0: global average pooling instead of a hidden layer")] = 128
    dropout: Dropout = 0.2

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        blocks = len(self.channels)
        if len(self.convolutions_of_blocks) != blocks:
            raise ValueError(
                f"`convolutions` lists {len(self.convolutions_of_blocks)} blocks, but `channels` lists {blocks}"
            )
        if self.strided > blocks:
            raise ValueError(f"`strided` is {self.strided}, but `channels` lists only {blocks} blocks")
        return self

    @property
    def convolutions_of_blocks(self) -> tuple[int, ...]:
        configured = self.convolutions
        return (configured,) * len(self.channels) if isinstance(configured, int) else configured


class LeNet(Document):
    """LeNet-5 as used in papers on compression: convolutions of 20 and 50 channels, a hidden layer of 500."""

    kind: Literal["lenet"]
    channels: tuple[Count, Count] = (20, 50)
    hidden: Count = 500


class ResNet(Document):
    """A residual network. `stem: small` keeps the resolution of small images, `large` reduces it to a quarter.

    `auto` is `small` if the shorter side is below 96 pixels.
    """

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50] = 18
    width: Annotated[Count, Field(description="channels of the stem; those of the stages follow from it")] = 64
    stem: Literal["auto", "small", "large"] = "auto"
    zero_init: Annotated[bool, Field(description="initialise every block as the identity")] = True
    dropout: Dropout = 0.0
    stages: Annotated[
        Widths | None, Field(description="channels after each stage; default: doubling, times four at depth 50")
    ] = None
    inner: Annotated[
        Widths | None, Field(description="channels inside the blocks of each stage; default: doubling")
    ] = None


class Periodic(Document):
    """Embeds each number as a linear map of its sines and cosines at learnt frequencies.

    A large `spread` suits columns with special values, such as round amounts; a small one suits smooth columns.
    """

    frequencies: Annotated[Count, Field(description="number per column")] = 48
    spread: Annotated[float, Field(gt=0, description="standard deviation of the initial frequencies")] = 1.0
    width: Annotated[Count, Field(description="width of the embedding")] = 16


class Mlp(Document):
    """Layers of linear map, batch normalisation, ReLU and dropout over one vector per row.

    `hidden` lists the width of each layer. Columns with encoding `index` become embeddings.
    """

    kind: Literal["mlp"]
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 64)
    dropout: Dropout = 0.1
    norm: Literal["batch", "none"] = "batch"
    embedding: Annotated[
        Count | None, Field(description="width per category; default: grows with the number of categories")
    ] = None
    periodic: Annotated[Periodic | None, Field(description="default: numbers are not embedded")] = None


class FtTransformer(Document):
    """A Transformer over the columns of a table, one token per column."""

    kind: Literal["ft_transformer"]
    width: Count = 64
    num_layers: Count = 3
    num_heads: Count = 8
    feed_forward: Annotated[float, Field(gt=0, description="width of the hidden layer as a multiple of `width`")] = 2.0
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        _require_divisible(self.width, self.num_heads)
        return self


class Rnn(Document):
    """A recurrent network over a sequence, or over the time axis of a spectrogram.

    `highway` adds a linear map of that many last steps to the output. `relative` reads the first column of a series
    relative to its last step, and adds the output to that step. Both help forecasts.
    """

    kind: Literal["rnn"]
    cell: Literal["elman", "lstm", "gru"] = "lstm"
    hidden: Count = 128
    num_layers: Count = 1
    bidirectional: bool = False
    pooling: Literal["last", "mean", "max"] = "last"
    embedding: Annotated[Count, Field(description="width per token, for text")] = 128
    dropout: Dropout = 0.1
    highway: Annotated[int, Field(ge=0)] = 0
    relative: Annotated[
        bool, Field(description="of a series whose first column is the label: predict the change from its last step")
    ] = False


class AttentionConfig(Document):
    """The options that the Transformer encoder and decoder share."""

    kind: str
    width: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    head_width: HeadWidth = None
    feed_forward: Annotated[float, Field(gt=0, description="width of the hidden layer as a multiple of `width`")] = 4.0
    max_length: Annotated[Count | None, Field(description="number of positions; default: that of the rows")] = None
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _has_valid_heads(self) -> Self:
        if self.head_width is None:
            _require_divisible(self.width, self.num_heads)
        return self


class Transformer(AttentionConfig):
    """A pre-norm Transformer encoder like BERT, for text and continuous sequences."""

    kind: Literal["transformer"]
    pooling: Literal["first", "mean", "max"] = "mean"
    convolution: Annotated[
        int, Field(ge=0, description="odd kernel size of a convolution before the first layer; 0: none")
    ] = 0
    wide: Annotated[bool, Field(description="text only: add a linear map of the tokens to the output")] = False

    @model_validator(mode="after")
    def _has_odd_kernel(self) -> Self:
        if self.convolution and self.convolution % 2 == 0:
            raise ValueError(f"`convolution` is {self.convolution}, but its kernel size must be odd")
        return self


class Gpt(AttentionConfig):
    """A causal Transformer decoder like GPT-2; it predicts from the state of the last token."""

    kind: Literal["gpt"]


class Custom(Document):
    """A user's network: `module:function` is called with the layout, the number of outputs and `options`."""

    kind: Literal["custom"]
    function: Annotated[
        str,
        Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:function, beside the recipe or installed"),
    ]
    options: Annotated[dict[str, Any], Field(default_factory=dict)]
    code: Annotated[
        dict[str, str],
        Field(default_factory=dict, description="set by Bloomery: the source of modules beside the recipe, by path"),
    ]
    packages: Annotated[
        dict[str, str], Field(default_factory=dict, description="set by Bloomery: the versions of imported packages")
    ]


class HuggingFace(Document):
    """An untrained network of Hugging Face `transformers`, from a configuration."""

    kind: Literal["huggingface"]
    config: Annotated[dict[str, Any], Field(description="`model_type` and the keys of its configuration")]

    @model_validator(mode="before")
    @classmethod
    def _names_no_checkpoint(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("checkpoint") is not None:
            raise ValueError(
                f"a checkpoint is a network of kind pretrained: {{kind: pretrained, checkpoint: {value['checkpoint']}}}"
            )
        return value

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("a config needs a model_type, such as bert or vit")
        return self


class Imported(Document):
    """A trained network from an ONNX file, exported by Keras, TensorFlow or others. It is not trained further."""

    kind: Literal["imported"]
    path: Annotated[str, Field(min_length=1, description="an ONNX file; relative to the recipe's folder")]
    channels: Annotated[
        Literal["first", "last"] | None,
        Field(description="images only: position of the channels; default: from the file's input shape"),
    ] = None
    sha256: Annotated[str | None, Field(description="set by Bloomery: the digest of the file")] = None

    def identity(self) -> Any:
        """The file counts by its digest, not by its path."""
        return self.model_dump(mode="json", exclude={"path"})


_OfSteps = Rnn | Transformer | Gpt | TokenBag  # the networks for texts, some also for sequences

# The networks that can be a branch of `Fused`. Trees and averages of predictions have no features to join.
Branch = Annotated[
    Cnn | LeNet | ResNet | Mlp | FtTransformer | _OfSteps | Custom | HuggingFace | Pretrained | Imported,
    Field(discriminator="kind"),
]


class Fused(FusedOptions):
    """Networks for the parts of mixed rows, the branches, whose features are joined for one head."""

    branches: Annotated[
        dict[str, Branch] | None,
        Field(
            min_length=1,
            description="the network of each part: `table`, or the column of a text, an image, a sound or a sequence; "
            "default: one that suits the part",
        ),
    ] = None

    def identity(self) -> Any:
        """Each branch counts as it does by itself."""
        branches = None if self.branches is None else {name: self.branches[name].identity() for name in self.branches}
        return {**self.model_dump(mode="json", exclude={"branches"}), "branches": branches}


class BoostedTrees(Document):
    """Gradient-boosted decision trees over the columns of a table, fitted by scikit-learn and written as ONNX.

    Each round adds one tree, or one for each class. The rounds with the lowest validation loss are kept. The outputs of
    several `models`, which differ in the random columns of their splits, are averaged.
    """

    kind: Literal["boosted_trees"]
    max_rounds: Annotated[Count, Field(description="most rounds; the validation loss decides how many are kept")] = 1000
    patience: Annotated[Count, Field(description="stop after so many rounds without a lower validation loss")] = 50
    learning_rate: Annotated[float, Field(gt=0, le=1, description="the weight of each tree")] = 0.05
    max_leaves: Annotated[int, Field(ge=2, description="of a tree")] = 31
    min_leaf_rows: Annotated[
        Count | None, Field(description="training rows of a leaf; default: 20, and fewer of few rows")
    ] = None
    l2: Annotated[float, Field(ge=0, description="penalty on the values of leaves", allow_inf_nan=False)] = 1.0
    column_share: Annotated[float, Field(gt=0, le=1, description="share of the columns that a split may use")] = 0.5
    models: Annotated[Count, Field(description="models whose outputs are averaged, each with random columns")] = 1


class TabM(Document):
    """A network for tables: many perceptrons that share most weights, and whose predictions are averaged.

    Each number is embedded by a piecewise linear function of learnt values at the quantiles of its training rows.
    """

    kind: Literal["tabm"]
    members: Annotated[Count, Field(description="number of predictions that are averaged")] = 32
    width: Annotated[Count, Field(description="of each hidden layer")] = 256
    num_layers: Count = 2
    dropout: Dropout = 0.1
    embedding: Annotated[Count, Field(description="width per number")] = 16
    bins: Annotated[int, Field(ge=2, description="most bins between quantiles, per number")] = 32
    edges: Annotated[
        tuple[tuple[float, ...], ...] | None,
        Field(description="set by Bloomery: the edges of the bins of each number; none of a number with two values"),
    ] = None


class TabularEnsemble(Document):
    """Averages the predictions of boosted trees, of TabM and of a linear model.

    All learn from the training split. The loss on the validation split decides their weights.
    """

    kind: Literal["tabular_ensemble"]
    trees: BoostedTrees = BoostedTrees(kind="boosted_trees")
    network: TabM = TabM(kind="tabm")
    linear: Annotated[
        bool, Field(description="add ridge or logistic regression, whose penalty is cross-validated, as a member")
    ] = False
    decisions: Annotated[
        Literal["likeliest", "score"],
        Field(
            description="score: shift the probabilities of classes so that the likeliest one suits the recipe's "
            "macro_f1 or balanced_accuracy on the validation split"
        ),
    ] = "likeliest"

    def identity(self) -> Any:
        """`linear` and `decisions` count only if they differ from their defaults, so that older keys stay valid."""
        fields = type(self).model_fields
        unchanged = {name for name in ("linear", "decisions") if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", by_alias=True, exclude=unchanged)


class Auto(Document):
    """Searches among the networks that suit the rows."""

    kind: Literal["auto"]


def _expand_auto(value: object) -> object:
    return {"kind": "auto"} if value == "auto" else value


# Why a kind of network does not predict sets of labels.
NOT_MULTILABEL = {
    "boosted_trees": "its trees are fitted to one class per row",
    "tabular_ensemble": "its trees are fitted to one class per row",
    "imported": "its outputs are read as one class per row",
}

# The networks that learn vectors of texts.
EMBEDDING_KINDS = ("pretrained", "rnn", "transformer", "gpt")
_WIDTH_KEYS = ("hidden_size", "dim", "n_embd", "d_model")  # of a checkpoint's config.json


def vector_width(model: Model) -> int | None:
    """The length of the vectors that a network computes.

    None of a kind that is not one of `EMBEDDING_KINDS`, and of a checkpoint that is not resolved or states no width.
    """
    if isinstance(model, Pretrained):
        widths = (model.config.get(key) for key in _WIDTH_KEYS) if model.config is not None else ()
        return next((width for width in widths if isinstance(width, int)), None)
    if isinstance(model, Rnn):
        return model.hidden * (2 if model.bidirectional else 1)
    return model.width if isinstance(model, Transformer | Gpt) else None


# A discriminated union, so that an error message is about the kind that the recipe names.
_ModelUnion = Annotated[
    Cnn
    | LeNet
    | ResNet
    | Mlp
    | FtTransformer
    | BoostedTrees
    | TabM
    | TabularEnsemble
    | _OfSteps
    | Custom
    | HuggingFace
    | Pretrained
    | Imported
    | Fused
    | Auto,
    Field(discriminator="kind"),
]
Model = Annotated[_ModelUnion, BeforeValidator(_expand_auto, json_schema_input_type=Literal["auto"] | _ModelUnion)]


def _require_divisible(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"width {width} is not divisible by {num_heads} heads")
