"""Quantisation of float32 ONNX to int8 ONNX with one scale a token, so that other rows don't change an answer.

Every product of activations with a constant matrix becomes an integer product: the matrix in 7 bits with a scale a
column, the activations in 8 bits with a scale a token that is computed at run time (W8A8, per token and per channel:
Yao et al., ZeroQuant, arXiv 2206.01861). Outliers in channels are first balanced between the two, by calibration
(Xiao et al., SmoothQuant, arXiv 2211.10438; the scales are applied in front of the product, because the residual reads
the same states).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from registry.encoders.inputs import Inputs

Matrix = NDArray[np.float32]

# Processors without VNNI add pairs of 8-bit products in 16 bits; with 7 bits in one factor they rarely overflow.
_WEIGHT_LEVELS = 63
_SMOOTHING = 0.5
# GELU is never below minus this; shifted up by it, activations use the whole range of an unsigned byte.
_GELU_LEAST = 0.17
_GELU_NODES = 4
_TINY = 1e-12


def quantise(source: Path, target: Path, batches: Sequence[Inputs]) -> None:
    """Write the int8 form of the model at `source`; `batches` are typical inputs."""
    model = onnx.load(str(source))
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    weights = {node.name: numpy_helper.to_array(constants[node.input[1]]) for node in products}
    readers: dict[str, list[Matrix]] = {}
    for node in products:
        readers.setdefault(node.input[0], []).append(weights[node.name])
    largest = _largest(source, list(readers), batches)
    one_sided = {name for name in readers if _from_gelu(graph, name)}
    writer = _GraphWriter()
    inputs: dict[str, _QuantisedStates] = {}
    nodes = []
    for node in graph.node:
        if node.name not in weights:
            nodes.append(node)
            continue
        states = node.input[0]
        if states not in inputs:
            inputs[states] = (
                writer.quantise_shifted(states)
                if states in one_sided
                else writer.quantise_smoothed(states, largest[states], readers[states])
            )
            nodes.extend(writer.take_nodes())
        writer.add_product(inputs[states], weights[node.name], node.output[0])
        nodes.extend(writer.take_nodes())
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in constants.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *writer.constants.values()])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(target))


def _from_gelu(graph: Any, name: str) -> bool:
    """Return whether states are the output of GELU, which the exporter writes as x (1 + erf(x / √2)) / 2."""
    producers = {output: node for node in graph.node for output in node.output}
    names = {name}
    for _ in range(_GELU_NODES):
        above = [producers[each] for each in names if each in producers]
        if any(node.op_type == "Erf" for node in above):
            return True
        names = {each for node in above if node.op_type in ("Mul", "Add") for each in node.input}
    return False


def _largest(source: Path, states: Sequence[str], batches: Sequence[Inputs]) -> dict[str, Matrix]:
    """Return the largest absolute value of each channel of a model's `states` over the batches, without padding."""
    import onnxruntime as ort

    model = onnx.load(str(source))
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in states)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest: dict[str, Matrix] = {}
    for batch in batches:
        read = batch["attention_mask"].astype(bool)
        for name, values in zip(states, session.run(list(states), batch), strict=True):
            sizes = np.abs(values[read]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, sizes), sizes)
    return largest


@dataclass(frozen=True, kw_only=True, slots=True)
class _QuantisedStates:
    """The names of quantised states, of their scale by token, of the step of a byte and of the byte for zero."""

    values: str
    scale: str
    step: str
    zero: str
    channels: Matrix | None
    shift: float


class _GraphWriter:
    """The nodes and constants of the new graph."""

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._count = 0

    def take_nodes(self) -> list[Any]:
        """Return the nodes since the last call."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def quantise_shifted(self, name: str) -> _QuantisedStates:
        """Quantise states of GELU, shifted up so that all are positive."""
        shifted = self._node("Add", name, self._constant(np.float32(_GELU_LEAST)))
        return self._quantise(
            shifted, shifted, np.float32(1 / 255), np.uint8(0), channels=None, shift=_GELU_LEAST
        )

    def quantise_smoothed(self, name: str, largest: Matrix, readers: Sequence[Matrix]) -> _QuantisedStates:
        """Quantise states of both signs, with outliers in channels balanced with the matrices that read them."""
        matrix = np.max([np.abs(reader).max(axis=1) for reader in readers], axis=0)
        channels = np.maximum(largest, 1e-3) ** _SMOOTHING / np.maximum(matrix, 1e-3) ** (1 - _SMOOTHING)
        smoothed = self._node("Mul", name, self._constant((1 / channels).astype(np.float32)))
        sizes = self._node("Abs", smoothed)
        return self._quantise(smoothed, sizes, np.float32(1 / 127), np.uint8(128), channels=channels, shift=0)

    def _quantise(
        self,
        states: str,
        sizes: str,
        step: np.float32,
        zero: np.uint8,
        *,
        channels: Matrix | None,
        shift: float,
    ) -> _QuantisedStates:
        """Quantise states in steps of the largest of each token's `sizes`."""
        largest = self._node("ReduceMax", sizes, axes=[-1], keepdims=1)
        scale = self._node("Max", largest, self._constant(np.float32(_TINY)))
        step_name, zero_name = self._constant(step), self._constant(zero)
        return _QuantisedStates(
            values=self._node("QuantizeLinear", self._node("Div", states, scale), step_name, zero_name),
            scale=scale,
            step=step_name,
            zero=zero_name,
            channels=channels,
            shift=shift,
        )

    def add_product(self, states: _QuantisedStates, matrix: Matrix, output: str) -> None:
        """Add the product of the states with a matrix [in, out], as `output`."""
        if states.channels is not None:
            matrix = matrix * states.channels[:, None]
        scales = np.maximum(np.abs(matrix).max(axis=0), _TINY) / _WEIGHT_LEVELS
        levels = np.rint(matrix / scales).astype(np.int8)
        product = self._node(
            "MatMulIntegerToFloat",
            states.values,
            self._constant(levels),
            states.step,
            self._constant(scales.astype(np.float32)),
            states.zero,
            self._constant(np.zeros(len(scales), np.int8)),
            domain="com.microsoft",
        )
        if not states.shift:
            self._node("Mul", product, states.scale, output=output)
            return
        surplus = (-states.shift * (levels * scales).sum(axis=0)).astype(np.float32)
        self._node("Add", self._node("Mul", product, states.scale), self._constant(surplus), output=output)

    def _node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or self._name()
        self._nodes.append(
            helper.make_node(kind, list(inputs), [output], name=f"{output}/{kind}", **attributes)
        )
        return output

    def _constant(self, value: NDArray[Any] | np.generic) -> str:
        name = self._name()
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _name(self) -> str:
        self._count += 1
        return f"quantised/{self._count}"
