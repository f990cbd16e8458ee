"""A small ONNX file that plain ONNX Runtime opens, and that plain zstd makes smaller still.

    path.write_bytes(plain(model))    # name it .onnx.zst; `zstd -d` gives an ONNX file

zstd does poorly on weights of which most are zero. So `packed` writes the distances between the others, a byte each,
and their indices into each layer's few values; ordinary operators make the weights of these. ONNX Runtime folds them
when it opens the file, so that it computes, and answers, as it would with the weights themselves.

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

_MOST_VALUES = 255  # in a layer, besides zero: indices are bytes
_FARTHEST = 255
_LEAST_SHARE_OF_ZEROS = 0.5  # below which distances cost more than they save
_FEWEST_BYTES = 512  # of a tensor that gets a part of the compressed file for itself
_OPSET = 13  # from which on Split takes sizes as a tensor


class _Sparse(NamedTuple):
    """An initializer as what is packed: at `places` of the flat tensor stand `values[codes]`."""

    name: str
    dims: tuple[int, ...]
    places: np.ndarray
    codes: np.ndarray
    values: np.ndarray


def pack_for_zstd(model: bytes) -> bytes:
    """`model`, the bytes of an ONNX file, as the fewest bytes that zstd and ONNX Runtime alone can read.

    The answers have the same bits.
    """
    small = minify(model)
    return min(compress_zstd(small), compress_zstd(pack_sparse_tensors(small)), key=len)


def minify(model: bytes) -> bytes:
    """The same network with names of one or two letters and without attributes that state a default; `encode` it.

    Inputs and outputs keep their names. Subgraphs are left as they are, and so is what they might read.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    for node in graph.node:
        node.name = node.doc_string = ""
        _drop_defaults(node, proto)
        del node.metadata_props[:]
    del graph.value_info[:]
    graph.name, proto.producer_name = "g", ""
    if not graph.sparse_initializer and not any(_has_graph(node) for node in graph.node):
        _rename(graph)
    return proto.SerializeToString(deterministic=True)


def pack_sparse_tensors(model: bytes) -> bytes:
    """The same network, of whose sparse tensors of few values the file holds distances and indices.

    Its answers have the same bits. A file without such tensors, or of an opset before 13, comes back as it is.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    found = [sparse for sparse in map(_sparse_of, graph.initializer) if sparse is not None]
    if opset < _OPSET or not any(_is_mostly_zero(sparse) for sparse in found):
        return model
    kept = [tensor for tensor in graph.initializer if tensor.name not in {sparse.name for sparse in found}]
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    fresh = (name for name in _short_names() if name not in taken)
    nodes, small, (gaps, codes) = _unpacking(found, fresh)
    rest = [*nodes, *graph.node]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rest)
    graph.initializer.extend([*kept, *small])
    return _with_last(proto, [gaps, codes])


def compress_zstd(model: bytes) -> bytes:
    """`model` as zstd's format has it, at its best level: frames one behind the other, which any zstd joins again.

    A large tensor begins a frame, since indices and distances are written in fewer bits if each has its own table.
    """
    starts = {0, len(model)}
    position = 0
    for tensor in onnx.load_from_string(model).graph.initializer:
        place = model.find(tensor.raw_data, position) if len(tensor.raw_data) >= _FEWEST_BYTES else -1
        if place >= 0:
            position = place + len(tensor.raw_data)
            starts |= {place, position}
    codec = zstd_codec()
    pieces = [codec.compress(model[start:stop], asbytes=True) for start, stop in itertools.pairwise(sorted(starts))]
    whole = codec.compress(model, asbytes=True)
    return min(b"".join(pieces), whole, key=len)


def _sparse_of(tensor: onnx.TensorProto) -> _Sparse | None:
    """A float32 tensor of few values. Zeros with a sign are values like any other."""
    if tensor.data_type != onnx.TensorProto.FLOAT or not tensor.raw_data or not len(tensor.dims) > 0:
        return None
    flat = numpy_helper.to_array(tensor).ravel()
    places = np.flatnonzero(flat.view(np.uint32))
    values, codes, counts = np.unique(flat[places].view(np.uint32), return_inverse=True, return_counts=True)
    if len(values) > _MOST_VALUES or 4 * len(values) >= len(flat):
        return None
    # The most frequent first, so that the indices of all tensors are spread alike and one table serves them.
    order = np.argsort(-counts, kind="stable")
    return _Sparse(tensor.name, tuple(tensor.dims), places, np.argsort(order)[codes], values[order].view(np.float32))


def _is_mostly_zero(sparse: _Sparse) -> bool:
    return len(sparse.places) <= (1 - _LEAST_SHARE_OF_ZEROS) * int(np.prod(sparse.dims))


def _unpacking(
    found: list[_Sparse], fresh: Iterable[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], tuple[onnx.TensorProto, onnx.TensorProto]]:
    """(nodes that make the tensors, their small constants, (distances, indices)), for all tensors end to end."""
    names = iter(fresh)
    nodes: list[onnx.NodeProto] = []
    small: list[onnx.TensorProto] = []

    def constant(array: np.ndarray) -> str:
        small.append(numpy_helper.from_array(array, next(names)))
        return small[-1].name

    def made_by(operator: str, *inputs: str, num_outputs: int = 1, **attributes: Any) -> list[str]:
        outputs = [next(names) for _ in range(num_outputs)]
        nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    gaps, codes, owners = _joined(found)
    per_tensor = np.bincount(owners, minlength=len(found))
    gaps_name, codes_name = next(names), next(names)
    (far,) = made_by("Cast", gaps_name, to=onnx.TensorProto.INT32)
    (places,) = made_by("CumSum", far, constant(np.array(0, np.int32)))
    (indices,) = made_by("Cast", codes_name, to=onnx.TensorProto.INT32)
    pieces = made_by("Split", indices, constant(per_tensor.astype(np.int64)), num_outputs=len(found))
    values = []
    for sparse, piece in zip(found, pieces, strict=True):
        values += made_by("Gather", constant(np.append(sparse.values, np.float32(0))), piece)
    (updates,) = made_by("Concat", *values, axis=0)
    # Distances count from before the first place, so one place more is made, and split off.
    sizes = np.array([1, *(int(np.prod(sparse.dims)) for sparse in found)], np.int64)
    (zeros,) = made_by("ConstantOfShape", constant(sizes.sum(keepdims=True)))
    (flat,) = made_by("ScatterElements", zeros, places, updates, axis=0)
    outputs = made_by("Split", flat, constant(sizes), num_outputs=len(sizes))
    for sparse, output in zip(found, outputs[1:], strict=True):
        nodes.append(helper.make_node("Reshape", [output, constant(np.array(sparse.dims, np.int64))], [sparse.name]))
    return nodes, small, (numpy_helper.from_array(gaps, gaps_name), numpy_helper.from_array(codes, codes_name))


def _joined(found: list[_Sparse]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distances uint8, indices uint8, which tensor each is of), over all tensors end to end.

    Where the next place is farther than a byte says, a zero is written on the way, whose index is behind the values'.
    """
    ends = np.cumsum([int(np.prod(sparse.dims)) for sparse in found])
    starts = np.concatenate([[0], ends[:-1]])
    places = np.concatenate([sparse.places + start for sparse, start in zip(found, starts, strict=True)])
    codes = np.concatenate([sparse.codes for sparse in found])
    gaps = np.diff(places, prepend=-1)
    num_between = (gaps - 1) // _FARTHEST
    at = np.repeat(np.arange(len(gaps)), num_between)
    number = np.arange(len(at)) - np.repeat(np.cumsum(num_between) - num_between, num_between)
    between = places[at] - gaps[at] + _FARTHEST * (number + 1)
    all_places = np.insert(places, at, between)
    owners = np.searchsorted(ends, all_places, side="right")
    zero_of = np.array([len(sparse.values) for sparse in found])
    all_codes = np.insert(codes, at, zero_of[np.searchsorted(ends, between, side="right")])
    return np.diff(all_places, prepend=-1).astype(np.uint8), all_codes.astype(np.uint8), owners


def _with_last(proto: onnx.ModelProto, tensors: list[onnx.TensorProto]) -> bytes:
    """The file with `tensors` as its last bytes: what is like them lies together, and nothing small behind.

    Fields of a protocol buffer may come in any order, and a message is the fields of its parts one behind the other.
    """
    graph = proto.graph.SerializeToString(deterministic=True)
    graph += onnx.GraphProto(initializer=tensors).SerializeToString(deterministic=True)
    around = onnx.ModelProto()
    around.CopyFrom(proto)
    around.ClearField("graph")
    empty = onnx.ModelProto(graph=onnx.GraphProto(name="")).SerializeToString()
    return around.SerializeToString(deterministic=True) + empty[:1] + encode_varints(len(graph)) + graph


def _drop_defaults(node: onnx.NodeProto, proto: onnx.ModelProto) -> None:
    version = next((entry.version for entry in proto.opset_import if entry.domain == node.domain), 0)
    if not version or not onnx.defs.has(node.op_type, node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    stays = [one for one in node.attribute if not _is_default(one, schema)]
    del node.attribute[:]
    node.attribute.extend(stays)


def _is_default(attribute: onnx.AttributeProto, schema: onnx.defs.OpSchema) -> bool:
    known = schema.attributes.get(attribute.name)
    if known is None or known.required or not known.default_value.name:
        return False
    return helper.get_attribute_value(attribute) == helper.get_attribute_value(known.default_value)


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _rename(graph: onnx.GraphProto) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)}
    names = (name for name in _short_names() if name not in fixed)
    new: dict[str, str] = {"": ""} | {name: name for name in fixed}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = new[name] if name in new else new.setdefault(name, next(names))
        for place, name in enumerate(node.output):
            node.output[place] = new[name] if name in new else new.setdefault(name, next(names))
    stays = [tensor for tensor in graph.initializer if tensor.name in new]
    for tensor in stays:
        tensor.name = new[tensor.name]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in stays]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _short_names() -> Iterable[str]:
    """a, b, ..., z, aa, ab, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    for length in itertools.count(1):
        yield from map("".join, itertools.product(letters, repeat=length))
