"""Reads MINDIR files, which are protobuf, for tests that look at exported graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen
class Value:
    """A node's input or output: a tensor's dtype and dims, or a constant."""

    dtype: str = ""
    dims: tuple[int, ...] = ()
    constant: object = None


@attrs.frozen
class Operator:
    """A node; `group` names the ranks of a collective."""

    name: str
    inputs: tuple[Value, ...]
    output: Value
    group: str = ""


class MindIr:
    """The operators of a MINDIR file, functions included."""

    def __init__(self, path: Path) -> None:
        from mindspore.train.mind_ir_pb2 import ModelProto

        model = ModelProto.FromString(path.read_bytes())
        graphs = [model.graph, *model.functions]
        values: dict[str, Value] = {}
        for graph in graphs:
            for tensor in graph.parameter:
                values[tensor.name] = _tensor(tensor)
            for entry in graph.input:
                values[entry.name] = _tensor(entry.tensor[0])
            for node in graph.node:
                values[node.output[0]] = _value(node)
        groups = {
            primitive.name: attribute.s.decode()
            for primitive in model.primitives
            for attribute in primitive.attribute
            if attribute.name == "group"
        }
        nodes = [node for graph in graphs for node in graph.node if node.op_type != "Constant"]
        self.operators = tuple(
            Operator(
                # "REF::RmsNorm:7" is use 7 of a primitive.
                name=node.op_type.removeprefix("REF::").split(":")[0],
                inputs=tuple(values[name] for name in node.input),
                output=values[node.output[0]],
                group=groups.get(node.op_type.removeprefix("REF::"), ""),
            )
            for node in nodes
        )
        self.counts = Counter(operator.name for operator in self.operators)

    def every(self, name: str) -> list[Operator]:
        return [operator for operator in self.operators if operator.name == name]


def _tensor(proto: Any) -> Value:
    return Value(dtype=proto.DataType.Name(proto.data_type), dims=tuple(proto.dims))


def _value(node: Any) -> Value:
    if not node.attribute:
        return Value()
    attribute = node.attribute[0]
    if node.op_type == "Constant" and not attribute.tensors:
        constants = {"INT64": "i", "BOOL": "i", "FLOAT": "f", "DOUBLE": "d"}
        field = constants.get(attribute.AttributeType.Name(attribute.type))
        return Value(constant=getattr(attribute, field)) if field else Value()
    tensors = attribute.tensors or [t for value in attribute.values[:1] for t in value.tensors]
    return _tensor(tensors[0]) if tensors else Value()
