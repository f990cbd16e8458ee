"""What a recipe may say about the network, by kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count

Dropout = Annotated[float, Field(ge=0, lt=1)]
HeadWidth = Annotated[Count | None, Field(description="left out, the heads share `width` among them")]
Widths = tuple[Count, Count, Count, Count]


class Cnn(Document):
    """Blocks of convolution, batch normalisation, ReLU and 2 x 2 max pooling, then one hidden layer.

    `hidden` is the width of the hidden layer. A convolution that is `strided` makes a quarter of the work of one that
    is pooled, and what it leaves out is lost.
    """

    kind: Literal["cnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    kernel_size: Literal[1, 3, 5, 7] = 3
    convolutions: Annotated[
        Count | tuple[Count, ...], Field(description="in each block, or `[1, 2]` in one and two")
    ] = 1
    strided: Annotated[
        int,
        Field(
            ge=0, description="so many first blocks halve an image by the first convolution's stride, not by pooling"
        ),
    ] = 0
    hidden: Annotated[int, Field(ge=0, description="0: the mean over the image goes to the head")] = 128
    dropout: Dropout = 0.2

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        blocks = len(self.channels)
        if len(self.convolutions_of_blocks) != blocks:
            raise ValueError(f"`convolutions` are of {len(self.convolutions_of_blocks)} blocks, `channels` of {blocks}")
        if self.strided > blocks:
            raise ValueError(f"{self.strided} blocks cannot be `strided`: `channels` are of {blocks}")
        return self

    @property
    def convolutions_of_blocks(self) -> tuple[int, ...]:
        stated = self.convolutions
        return (stated,) * len(self.channels) if isinstance(stated, int) else stated


class LeNet(Document):
    """LeNet-5 as the papers on compression have it: two convolutions of 20 and 50 channels, one hidden layer of 500."""

    kind: Literal["lenet"]
    channels: tuple[Count, Count] = (20, 50)
    hidden: Count = 500


class ResNet(Document):
    """A residual network; `stem: small` keeps the resolution of small images, `large` quarters it first.

    `auto` is `small` where the shorter side is below 96 pixels.
    """

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50] = 18
    width: Annotated[Count, Field(description="channels of the stem, from which those of the stages follow")] = 64
    stem: Literal["auto", "small", "large"] = "auto"
    zero_init: Annotated[bool, Field(description="every block begins as the identity")] = True
    dropout: Dropout = 0.0
    stages: Annotated[
        Widths | None, Field(description="channels after each stage; left out, they double, four times so at depth 50")
    ] = None
    inner: Annotated[Widths | None, Field(description="within the blocks of each stage; left out, they double")] = None


class Periodic(Document):
    """Each number becomes a vector: a linear map of its sines and cosines at learnt frequencies.

    Numbers in standard units of which single values matter, such as round amounts, want a large `spread`; smooth ones
    a small one.
    """

    frequencies: Annotated[Count, Field(description="for each column")] = 48
    spread: Annotated[float, Field(gt=0, description="standard deviation of the frequencies at first")] = 1.0
    width: Annotated[Count, Field(description="of the vector")] = 16


class Mlp(Document):
    """Layers of a linear map, batch normalisation, ReLU and dropout over one vector per row.

    `hidden` has the width of each layer. Columns encoded as `index` become embeddings.
    """

    kind: Literal["mlp"]
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 64)
    dropout: Dropout = 0.1
    norm: Literal["batch", "none"] = "batch"
    embedding: Annotated[
        Count | None, Field(description="values for each category; left out, it grows with the number of categories")
    ] = None
    periodic: Annotated[Periodic | None, Field(description="left out, numbers go in as they are")] = None


class FtTransformer(Document):
    """A Transformer over the columns of a table, each of which is one token."""

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
    """A recurrent network over a sequence, or over the time of a spectrogram.

    `highway` adds a linear map of that many last steps to the answer: what a forecast owes to the last values.
    """

    kind: Literal["rnn"]
    cell: Literal["elman", "lstm", "gru"] = "lstm"
    hidden: Count = 128
    num_layers: Count = 1
    bidirectional: bool = False
    pooling: Literal["last", "mean", "max"] = "last"
    embedding: Annotated[Count, Field(description="values for each token, where the input is text")] = 128
    dropout: Dropout = 0.1
    highway: Annotated[int, Field(ge=0)] = 0


class Transformer(Document):
    """An encoder in the manner of BERT, for text and for continuous sequences, with layer normalisation first."""

    kind: Literal["transformer"]
    width: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    head_width: HeadWidth = None
    feed_forward: Annotated[float, Field(gt=0, description="width of the hidden layer as a multiple of `width`")] = 4.0
    pooling: Literal["first", "mean", "max"] = "mean"
    convolution: Annotated[
        int, Field(ge=0, description="odd: steps that each step sees of its neighbours before the first layer; 0: none")
    ] = 0
    wide: Annotated[bool, Field(description="of text: a linear map of its tokens is added to the answer")] = False
    max_length: Annotated[Count | None, Field(description="positions; left out, those of the encoded rows")] = None
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.head_width is None:
            _require_divisible(self.width, self.num_heads)
        if self.convolution and self.convolution % 2 == 0:
            raise ValueError(f"a convolution over {self.convolution} steps has no middle; take an odd number")
        return self


class Gpt(Document):
    """A decoder in the manner of GPT-2, with a causal mask; it classifies by the last token's state."""

    kind: Literal["gpt"]
    width: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    head_width: HeadWidth = None
    feed_forward: Annotated[float, Field(gt=0, description="width of the hidden layer as a multiple of `width`")] = 4.0
    max_length: Annotated[Count | None, Field(description="positions; left out, those of the encoded rows")] = None
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.head_width is None:
            _require_divisible(self.width, self.num_heads)
        return self


class Custom(Document):
    """Your own network: `module:function`, called with the layout, the number of outputs and `options`."""

    kind: Literal["custom"]
    function: Annotated[
        str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:function, here or installed")
    ]
    options: Annotated[dict[str, Any], Field(default_factory=dict)]
    code: Annotated[
        dict[str, str], Field(default_factory=dict, description="never stated: the modules beside the recipe, by path")
    ]
    packages: Annotated[
        dict[str, str], Field(default_factory=dict, description="never stated: the versions of what they import")
    ]


class HuggingFace(Document):
    """A network of Hugging Face `transformers`, from its configuration or a checkpoint folder, without a network."""

    kind: Literal["huggingface"]
    checkpoint: Annotated[
        str | None, Field(description="a folder with config.json and safetensors, whose weights training begins with")
    ] = None
    config: Annotated[dict[str, Any] | None, Field(description="`model_type` and what its configuration takes")] = None
    sha256: Annotated[str | None, Field(description="never stated: the digest of the checkpoint")] = None

    def identity(self) -> Any:
        """The checkpoint counts by its digest, not by its path."""
        return self.model_dump(mode="json", exclude={"checkpoint"})

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        # A checkpoint that was looked at brings its configuration along.
        if (self.checkpoint is None) == (self.config is None) and self.sha256 is None:
            raise ValueError("state a checkpoint folder or a config, and not both")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("a config has a model_type, such as bert or vit")
        return self


class Imported(Document):
    """A network that comes trained, as an ONNX file: from Keras, TensorFlow or anything else. It is not trained."""

    kind: Literal["imported"]
    path: Annotated[str, Field(min_length=1, description="an ONNX file; a relative path starts at the recipe's folder")]
    channels: Annotated[
        Literal["first", "last"] | None, Field(description="of images; left out, as the file's input shape has them")
    ] = None
    sha256: Annotated[str | None, Field(description="never stated: the digest of the file")] = None

    def identity(self) -> Any:
        """The file counts by its digest, not by its path."""
        return self.model_dump(mode="json", exclude={"path"})


class Auto(Document):
    """The network is searched for among those that suit the rows."""

    kind: Literal["auto"]


def _expand_auto(value: object) -> object:
    return {"kind": "auto"} if value == "auto" else value


# Each member names its kind, so a recipe's mistake is told of the one that was meant.
_ModelUnion = Annotated[
    Cnn | LeNet | ResNet | Mlp | FtTransformer | Rnn | Transformer | Gpt | Custom | HuggingFace | Imported | Auto,
    Field(discriminator="kind"),
]
Model = Annotated[_ModelUnion, BeforeValidator(_expand_auto, json_schema_input_type=Literal["auto"] | _ModelUnion)]


def _require_divisible(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"a width of {width} cannot be shared by {num_heads} heads")
