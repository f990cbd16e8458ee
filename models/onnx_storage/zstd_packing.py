"""Packs an ONNX file so that zstd compresses it well and plain ONNX Runtime still opens it.

    path.write_bytes(pack_for_zstd(model))    # name it .onnx.zst; `zstd -d` restores an ONNX file

zstd compresses sparse weights poorly. So `pack_sparse_tensors` stores the gaps between nonzero weights, a byte each,
and their indices into each layer's few values; standard operators rebuild the weights. ONNX Runtime folds these
operators when it opens the file, so speed and outputs are those of the original weights.

Needs no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bloomery.models.onnx_storage.decoder import zstd_codec
from bloomery.models.onnx_storage.encoder import encode_varints

_MAX_VALUES = 255  # nonzero values of a tensor: indices are bytes
_MAX_GAP = 255
_MIN_ZERO_SHARE = 0.5  # below this the gaps cost more than they save
_MIN_FRAME_BYTES = 512  # of a tensor that gets a zstd frame of its own
_MIN_OPSET = 13  # the first in which Split takes sizes as a tensor


class _SparseTensor(NamedTuple):
    """An initializer: the flat tensor has the values `values[indices]` at `positions`."""

    name: str
    dims: tuple[int, ...]
    positions: np.ndarray
    indices: np.ndarray
    values: np.ndarray


def pack_for_zstd(model: bytes) -> bytes:
    """`model`, the bytes of an ONNX file, in the fewest bytes that zstd and ONNX Runtime alone can read.

    The outputs keep their bits.
    """
    small = minify(model)
    return min(compress_zstd(small), compress_zstd(pack_sparse_tensors(small)), key=len)


def minify(model: bytes) -> bytes:
    """The same network with names of one or two letters and without attributes that have their default.

    Inputs and outputs keep their names. In a graph with subgraphs all names stay, since subgraphs may use them.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    for node in graph.node:
        node.name = node.doc_string = ""
        _drop_defaults(node, proto)
        del node.metadata_props[:]
    del graph.value_info[:]
    graph.name, proto.producer_name = "g", ""
    if not graph.sparse_initializer and not any(_has_subgraph(node) for node in graph.node):
        _shorten_names(graph)
    return proto.SerializeToString(deterministic=True)


def pack_sparse_tensors(model: bytes) -> bytes:
    """The same network with gaps and indices in place of sparse tensors of few values.

    The outputs keep their bits. A file without such tensors, or of an opset before 13, comes back unchanged.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    tensors = [sparse for sparse in map(_to_sparse, graph.initializer) if sparse is not None]
    if opset < _MIN_OPSET or not any(_is_mostly_zero(tensor) for tensor in tensors):
        return model
    dense_tensors = [tensor for tensor in graph.initializer if tensor.name not in {sparse.name for sparse in tensors}]
    used_names = {name for node in graph.node for name in (*node.input, *node.output)}
    free_names = (name for name in _short_names() if name not in used_names)
    nodes, constants, (gaps, indices) = _unpacking(tensors, free_names)
    all_nodes = [*nodes, *graph.node]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(all_nodes)
    graph.initializer.extend([*dense_tensors, *constants])
    return _serialize_with_last(proto, [gaps, indices])


def compress_zstd(model: bytes) -> bytes:
    """`model` compressed by zstd at its best level, as one or several frames, which any zstd joins again.

    Large tensors get frames of their own: indices and gaps need fewer bits if each has its own entropy table.
    """
    boundaries = {0, len(model)}
    position = 0
    for tensor in onnx.load_from_string(model).graph.initializer:
        start = model.find(tensor.raw_data, position) if len(tensor.raw_data) >= _MIN_FRAME_BYTES else -1
        if start >= 0:
            position = start + len(tensor.raw_data)
            boundaries |= {start, position}
    codec = zstd_codec()
    frames = [codec.compress(model[start:stop], asbytes=True) for start, stop in itertools.pairwise(sorted(boundaries))]
    single_frame = codec.compress(model, asbytes=True)
    return min(b"".join(frames), single_frame, key=len)


def _to_sparse(tensor: onnx.TensorProto) -> _SparseTensor | None:
    """A float32 tensor of few values, or None. Negative zeros count as values."""
    if tensor.data_type != onnx.TensorProto.FLOAT or not tensor.raw_data or not len(tensor.dims) > 0:
        return None
    flat = numpy_helper.to_array(tensor).ravel()
    positions = np.flatnonzero(flat.view(np.uint32))
    values, indices, counts = np.unique(flat[positions].view(np.uint32), return_inverse=True, return_counts=True)
    if len(values) > _MAX_VALUES or 4 * len(values) >= len(flat):
        return None
    # The most frequent value first, so that the indices of all tensors have similar statistics and share a table.
    order = np.argsort(-counts, kind="stable")
    ranks = np.argsort(order)[indices]
    return _SparseTensor(tensor.name, tuple(tensor.dims), positions, ranks, values[order].view(np.float32))


def _is_mostly_zero(tensor: _SparseTensor) -> bool:
    return len(tensor.positions) <= (1 - _MIN_ZERO_SHARE) * int(np.prod(tensor.dims))


def _unpacking(
    tensors: list[_SparseTensor], free_names: Iterable[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], tuple[onnx.TensorProto, onnx.TensorProto]]:
    """(nodes that rebuild the tensors, their constants, (gaps, indices)), for all tensors concatenated."""
    names = iter(free_names)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add_constant(array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array, next(names)))
        return constants[-1].name

    def add_node(operator: str, *inputs: str, num_outputs: int = 1, **attributes: Any) -> list[str]:
        outputs = [next(names) for _ in range(num_outputs)]
        nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    gaps, indices, owners = _concatenate(tensors)
    num_of_tensor = np.bincount(owners, minlength=len(tensors))
    gaps_name, indices_name = next(names), next(names)
    (wide_gaps,) = add_node("Cast", gaps_name, to=onnx.TensorProto.INT32)
    (positions,) = add_node("CumSum", wide_gaps, add_constant(np.array(0, np.int32)))
    (wide_indices,) = add_node("Cast", indices_name, to=onnx.TensorProto.INT32)
    indices_of_tensor = add_node(
        "Split", wide_indices, add_constant(num_of_tensor.astype(np.int64)), num_outputs=len(tensors)
    )
    values = []
    for tensor, tensor_indices in zip(tensors, indices_of_tensor, strict=True):
        values += add_node("Gather", add_constant(np.append(tensor.values, np.float32(0))), tensor_indices)
    (updates,) = add_node("Concat", *values, axis=0)
    # Gaps count from before the first position, so the flat tensor has one element more, which is split off.
    sizes = np.array([1, *(int(np.prod(tensor.dims)) for tensor in tensors)], np.int64)
    (zeros,) = add_node("ConstantOfShape", add_constant(sizes.sum(keepdims=True)))
    (flat,) = add_node("ScatterElements", zeros, positions, updates, axis=0)
    outputs = add_node("Split", flat, add_constant(sizes), num_outputs=len(sizes))
    for tensor, output in zip(tensors, outputs[1:], strict=True):
        shape = add_constant(np.array(tensor.dims, np.int64))
        nodes.append(helper.make_node("Reshape", [output, shape], [tensor.name]))
    return nodes, constants, (numpy_helper.from_array(gaps, gaps_name), numpy_helper.from_array(indices, indices_name))


def _concatenate(tensors: list[_SparseTensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gaps uint8, indices uint8, tensor of each), over all tensors concatenated.

    Where a gap exceeds a byte, a zero is inserted; its index follows those of the tensor's values.
    """
    ends = np.cumsum([int(np.prod(tensor.dims)) for tensor in tensors])
    starts = np.concatenate([[0], ends[:-1]])
    positions = np.concatenate([tensor.positions + start for tensor, start in zip(tensors, starts, strict=True)])
    indices = np.concatenate([tensor.indices for tensor in tensors])
    gaps = np.diff(positions, prepend=-1)
    num_inserted = (gaps - 1) // _MAX_GAP
    before = np.repeat(np.arange(len(gaps)), num_inserted)
    number = np.arange(len(before)) - np.repeat(np.cumsum(num_inserted) - num_inserted, num_inserted)
    inserted = positions[before] - gaps[before] + _MAX_GAP * (number + 1)
    all_positions = np.insert(positions, before, inserted)
    owners = np.searchsorted(ends, all_positions, side="right")
    zero_index = np.array([len(tensor.values) for tensor in tensors])
    all_indices = np.insert(indices, before, zero_index[np.searchsorted(ends, inserted, side="right")])
    return np.diff(all_positions, prepend=-1).astype(np.uint8), all_indices.astype(np.uint8), owners


def _serialize_with_last(proto: onnx.ModelProto, tensors: list[onnx.TensorProto]) -> bytes:
    """The file with `tensors` as its last bytes, so that similar bytes are adjacent and nothing small follows.

    Protocol buffers allow fields in any order, and concatenated fields of a message merge.
    """
    graph = proto.graph.SerializeToString(deterministic=True)
    graph += onnx.GraphProto(initializer=tensors).SerializeToString(deterministic=True)
    without_graph = onnx.ModelProto()
    without_graph.CopyFrom(proto)
    without_graph.ClearField("graph")
    empty = onnx.ModelProto(graph=onnx.GraphProto(name="")).SerializeToString()
    return without_graph.SerializeToString(deterministic=True) + empty[:1] + encode_varints(len(graph)) + graph


def _drop_defaults(node: onnx.NodeProto, proto: onnx.ModelProto) -> None:
    version = next((entry.version for entry in proto.opset_import if entry.domain == node.domain), 0)
    if not version or not onnx.defs.has(node.op_type, node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    attributes = [attribute for attribute in node.attribute if not _is_default(attribute, schema)]
    del node.attribute[:]
    node.attribute.extend(attributes)


def _is_default(attribute: onnx.AttributeProto, schema: onnx.defs.OpSchema) -> bool:
    definition = schema.attributes.get(attribute.name)
    if definition is None or definition.required or not definition.default_value.name:
        return False
    return helper.get_attribute_value(attribute) == helper.get_attribute_value(definition.default_value)


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _shorten_names(graph: onnx.GraphProto) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)}
    names = (name for name in _short_names() if name not in fixed)
    short_names: dict[str, str] = {"": ""} | {name: name for name in fixed}
    for node in graph.node:
        for tensor_names in (node.input, node.output):
            for position, name in enumerate(tensor_names):
                if name not in short_names:
                    short_names[name] = next(names)
                tensor_names[position] = short_names[name]
    used_tensors = [tensor for tensor in graph.initializer if tensor.name in short_names]
    for tensor in used_tensors:
        tensor.name = short_names[tensor.name]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in used_tensors]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _short_names() -> Iterable[str]:
    """a, b, ..., z, aa, ab, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    for length in itertools.count(1):
        yield from map("".join, itertools.product(letters, repeat=length))
