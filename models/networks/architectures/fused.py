"""A network for mixed rows: each part has a branch, and the branches' features are joined for one head.

Source: Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion" (a gate that sees all parts); Neverova et
al. 2016, "ModDrop: Adaptive Multi-Modal Gesture Recognition" (parts that are dropped in training); Vaswani et al. 2017,
"Attention Is All You Need" (parts that attend to parts).

Shapes: B rows, F values of a row, P parts, D parts that may be dropped, W features of a branch, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout, Part, PartSlice
from bloomery.models.networks.config import Branch, Cnn, Fused, Mlp, Model, Rnn, Transformer
from bloomery.models.networks.layers.attention import Heads, TransformerBlock
from bloomery.models.networks.layers.padding import trim_common_padding

OPTIONAL_DROPOUT = 0.1  # of parts that may be missing, so that their stand-ins are learnt
_HIDDEN_FACTOR = 2  # of the feed-forward layer behind the attention of parts

BranchBuilder = Callable[[Model, Layout, int], nn.Module]


class FusedNetwork(nn.Module):
    """x_BF float32, rows of a mixed layout -> float32 (B, K)."""

    def __init__(self, config: Fused, layout: Layout, branches: Sequence[nn.Module], num_outputs: int) -> None:
        super().__init__()
        self.slices, self.width = layout.part_slices, config.width
        self.branches = nn.ModuleList(branches)  # in the order of the parts; names could clash with a module's
        self.join = Join(config, layout.parts, num_outputs)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        features = []
        for number, (branch, (part, start, stop)) in enumerate(zip(self.branches, self.slices, strict=True)):
            if self.join.is_silent(number):
                features.append(x_BF.new_zeros(len(x_BF), self.width))
                continue
            rows = part_rows(x_BF, part, start, stop)
            if self.training and part.layout.kind == "tokens" and getattr(branch, "trims_padding", False):
                rows = trim_common_padding(rows)
            features.append(branch(rows))
        flags = [x_BF[:, stop : stop + 1] for part, _, stop in self.slices if part.is_optional]
        outputs_BK: torch.Tensor = self.join(*features, *flags)
        return outputs_BK


def part_rows(x_BF: torch.Tensor, part: Part, start: int, stop: int) -> torch.Tensor:
    """The values of a part, float32 (B, *shape of its layout)."""
    return x_BF[:, start:stop].reshape(-1, *part.layout.shape)


def find_part_slices(network: nn.Module) -> tuple[PartSlice, ...]:
    """Where the parts of mixed rows lie, also of a network that is distributed; none of other networks."""
    fused = next((module for module in network.modules() if isinstance(module, FusedNetwork)), None)
    return () if fused is None else fused.slices


class Join(nn.Module):
    """The features of all parts, each float32 (B, W), and the flags (B, 1) of the optional ones -> float32 (B, K).

    The learnt `stand_ins_DW` replace the features of a part that is missing, or that training drops. With join `sum`,
    the outputs are the sum of linear maps, one for each part, which are zero at first: a part that has learnt nothing
    changes nothing.
    """

    def __init__(self, config: Fused, parts: Sequence[Part], num_outputs: int) -> None:
        super().__init__()
        width, num_parts = config.width, len(parts)
        self._is_optional = [part.is_optional for part in parts]
        rates = [
            config.modality_dropout
            if config.modality_dropout is not None
            else OPTIONAL_DROPOUT * part.is_optional  # without a rate, required parts are always there
            for part in parts
        ]
        self._rates = rates
        self._dropped = [number for number in range(num_parts) if rates[number] or parts[number].is_optional]
        self.stand_ins_DW = nn.Parameter(torch.randn(len(self._dropped), width) * 0.02) if self._dropped else None
        self.dropout = nn.Dropout(config.dropout)
        self.heads: nn.ModuleList | None = None
        if config.join == "sum":  # without norms, which would enlarge the features of a part that is of little use
            self.norms = nn.ModuleList(nn.Identity() for _ in parts)
            self.heads = nn.ModuleList(_zero_linear(width, num_outputs) for _ in parts)
            return
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in parts)
        num_joined = num_parts * width
        self.gate = nn.Linear(num_joined, num_joined) if config.join == "gate" else None
        self.positions_PW: nn.Parameter | None = None
        self.block: nn.Module | None = None
        if config.join == "attention":
            num_joined = width
            self.positions_PW = nn.Parameter(torch.randn(num_parts, width) * 0.02)
            heads = Heads(config.num_heads, width // config.num_heads)
            self.block = TransformerBlock(width, heads, _HIDDEN_FACTOR * width, config.dropout)
        self.hidden = nn.Linear(num_joined, width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        num_parts = len(self.norms)
        flags = iter(tensors[num_parts:])
        present = [next(flags) > 0.5 if is_optional else None for is_optional in self._is_optional]
        if self.training and any(self._rates):
            present = self._drop_parts(present, tensors[0])
        features = []
        for number, norm in enumerate(self.norms):
            features_BW, present_B1 = norm(tensors[number]), present[number]
            if present_B1 is not None:
                assert self.stand_ins_DW is not None
                stand_in_W = self.stand_ins_DW[self._dropped.index(number)]
                features_BW = torch.where(present_B1, features_BW, stand_in_W)
            features.append(features_BW)
        if self.heads is not None:
            parts = [head(self.dropout(part_BW)) for head, part_BW in zip(self.heads, features, strict=True)]
            return torch.stack(parts).sum(0)
        hidden_BW = torch.relu(self.hidden(self.dropout(self._combine(features))))
        outputs_BK: torch.Tensor = self.head(self.dropout(hidden_BW))
        return outputs_BK

    def is_silent(self, number: int) -> bool:
        """Whether the outputs of a part are zero and frozen, as in a stage in which other parts learn."""
        if self.heads is None:
            return False
        # Compression may wrap the linear map, replace it by two, or compute its weight: then it learns.
        weight = dict(self.heads[number].named_parameters(recurse=False)).get("weight")
        return weight is not None and not weight.requires_grad and not bool(weight.any())

    def _combine(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.block is not None and self.positions_PW is not None:
            pooled_BW: torch.Tensor = self.block(torch.stack(list(features), dim=1) + self.positions_PW).mean(1)
            return pooled_BW
        joined_BI = torch.cat(list(features), dim=1)
        return joined_BI if self.gate is None else joined_BI * torch.sigmoid(self.gate(joined_BI))

    def _drop_parts(self, present: Sequence[torch.Tensor | None], example: torch.Tensor) -> list[torch.Tensor | None]:
        """`present` without some parts, drawn for each row and part; a row never loses its last one."""
        device = example.device
        present_BP = torch.cat(
            [
                torch.ones(len(example), 1, dtype=torch.bool, device=device) if present_B1 is None else present_B1
                for present_B1 in present
            ],
            dim=1,
        )
        rates_P = torch.tensor(self._rates, device=device)
        kept_BP = present_BP & (torch.rand(present_BP.shape, device=device) >= rates_P)
        kept_BP = torch.where(kept_BP.any(1, keepdim=True), kept_BP, present_BP)
        return [kept_BP[:, number : number + 1] if number in self._dropped else None for number in range(len(present))]


def _zero_linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    linear = nn.Linear(num_inputs, num_outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def branch_configs(config: Fused, layout: Layout) -> dict[str, Branch]:
    """The network of each part, in the order of the parts.

    Raises:
        RecipeInvalid: a part has no branch, a branch has no part, or rows have no parts.
    """
    names = [part.name for part in layout.parts]
    if not names:
        raise _unsuitable(
            f"rows of kind {layout.kind} have no parts", "inputs of different kinds", "use another kind of network"
        )
    if config.branches is None:
        return {part.name: default_branch(part.layout) for part in layout.parts}
    if set(names) != set(config.branches):
        raise _unsuitable(
            f"the branches are {', '.join(config.branches)}, but a row has the parts {', '.join(names)}",
            "a branch for each part",
            "name the branches by the parts, or leave `branches` out",
        )
    return {name: config.branches[name] for name in names}


def with_branches(config: Fused, layout: Layout) -> Fused:
    """`config` with the default branches for rows of this layout, so that other defaults do not change the network."""
    return config.model_copy(update={"branches": branch_configs(config, layout)})


def default_branch(layout: Layout) -> Branch:
    """A network that suits rows of this layout, for a part without a configured one."""
    match layout.kind:
        case "tokens":
            return Transformer(kind="transformer", convolution=3)
        case "sequence":
            return Rnn(kind="rnn", cell="gru", bidirectional=True, pooling="mean")
        case "image":
            return Cnn(kind="cnn")
        case _:
            return Mlp(kind="mlp")


def build(config: Fused, layout: Layout, num_outputs: int, build_branch: BranchBuilder) -> FusedNetwork:
    configs: Mapping[str, Branch] = branch_configs(config, layout)
    branches = [build_branch(configs[part.name], part.layout, config.width) for part in layout.parts]
    return FusedNetwork(config, layout, branches, num_outputs)


def _unsuitable(problem: str, required: str, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(problem, required=required, where="model.branches in the recipe", remedy=remedy)
