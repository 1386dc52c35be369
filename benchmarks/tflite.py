"""Write MobileNet as a TensorFlow Lite flatbuffer: NHWC, BatchNorm folded, ReLU6 fused.

It is the graph that Keras's own converter produces, built from a state_dict in a tenth of a second
with the schema that ships inside ai-edge-litert. (litert-torch gives the same graph plus two
transposes, but takes 13 s a model and installs 2 GB.)
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[Any]
BN_EPS = 1e-3


class Graph:
    """A flatbuffer subgraph under construction; tensors are known by their index."""

    def __init__(self, schema: Any) -> None:
        """Start with the empty buffer 0 that the format asks for."""
        self.schema = schema
        self.buffers = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int] = []

    def tensor(self, shape: tuple[int, ...], data: Array | None = None) -> int:
        """Add a tensor, constant when `data` is given, and return its index."""
        tensor = self.schema.TensorT()
        tensor.name = f"t{len(self.tensors)}".encode()
        tensor.shape = list(shape)
        is_index = data is not None and data.dtype == np.int32
        kinds = self.schema.TensorType
        tensor.type = kinds.INT32 if is_index else kinds.FLOAT32
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, data: Array) -> int:
        """Add a constant tensor and return its index."""
        return self.tensor(data.shape, data)

    def operator(self, kind: str, inputs: list[int], shape: tuple[int, ...], **options: Any) -> int:
        """Add an operator `kind` (e.g. `Conv2D`) with its options; return its output's index."""
        snake = {"Conv2D": "CONV_2D", "DepthwiseConv2D": "DEPTHWISE_CONV_2D", "Pad": "PAD"}
        snake |= {"Reducer": "MEAN", "FullyConnected": "FULLY_CONNECTED"}
        code = getattr(self.schema.BuiltinOperator, snake[kind])
        if code not in self.codes:
            self.codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.index(code)
        operator.inputs = inputs
        operator.outputs = [self.tensor(shape)]
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind + "Options")
        operator.builtinOptions = getattr(self.schema, kind + "OptionsT")()
        for name, value in options.items():
            setattr(operator.builtinOptions, name, value)
        self.operators.append(operator)
        return operator.outputs[0]

    def serialize(self, source: int, result: int) -> bytes:
        """Return the model with this graph, from tensor `source` to tensor `result`."""
        import flatbuffers

        model, graph = self.schema.ModelT(), self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = [source], [result]
        model.version, model.buffers, model.subgraphs = 3, self.buffers, [graph]
        model.operatorCodes = []
        for value in self.codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = value
            code.deprecatedBuiltinCode = min(value, 127)
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def folded(state: dict[str, Tensor], prefix: str) -> tuple[Array, Array]:
    """Return weight [O, I, K, K] and bias [O] of a convolution with its BatchNorm folded in."""
    weight = state[prefix + "conv.weight"].double()
    scale = state[prefix + "bn.weight"].double()
    scale = scale / (state[prefix + "bn.running_var"].double() + BN_EPS).sqrt()
    bias = state[prefix + "bn.bias"].double() - state[prefix + "bn.running_mean"].double() * scale
    return (weight * scale[:, None, None, None]).float().numpy(), bias.float().numpy()


def convolution(
    graph: Graph, source: int, state: dict[str, Tensor], prefix: str, stride: int
) -> int:
    """Add conv + BN + ReLU6; stride 2 pads (0, 1), which is SAME unless the map is odd."""
    batch, height, width, channels = graph.tensors[source].shape
    weight, bias = folded(state, prefix)
    depthwise = prefix.endswith("depthwise.")
    same = stride == 1 or height % 2 == 0 or prefix == "stem."
    if not same:
        margins = graph.constant(np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))
        height, width = height + 1, width + 1
        source = graph.operator("Pad", [source, margins], (batch, height, width, channels))
    edge = 0 if same else weight.shape[2] - 1
    shape = (
        batch,
        (height - edge + stride - 1) // stride,
        (width - edge + stride - 1) // stride,
        weight.shape[0],
    )
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    inputs = [source, graph.constant(weight.transpose(order)), graph.constant(bias)]
    options = {
        "padding": graph.schema.Padding.SAME if same else graph.schema.Padding.VALID,
        "strideW": stride,
        "strideH": stride,
        "fusedActivationFunction": graph.schema.ActivationFunctionType.RELU6,
    }
    if depthwise:
        return graph.operator("DepthwiseConv2D", inputs, shape, depthMultiplier=1, **options)
    return graph.operator("Conv2D", inputs, shape, **options)


def write_tflite(state: dict[str, Tensor], batch: int, resolution: int) -> bytes:
    """Return the flatbuffer of the network with these weights and Keras padding."""
    from ai_edge_litert import schema_py_generated as schema

    graph = Graph(schema)
    source = graph.tensor((batch, resolution, resolution, state["stem.conv.weight"].shape[1]))
    current = convolution(graph, source, state, "stem.", 2)
    for block in range(13):
        stride = 2 if block in (1, 3, 5, 11) else 1
        current = convolution(graph, current, state, f"blocks.{block}.depthwise.", stride)
        current = convolution(graph, current, state, f"blocks.{block}.pointwise.", 1)
    channels = graph.tensors[current].shape[3]
    axes = graph.constant(np.array([1, 2], np.int32))
    pooled = graph.operator("Reducer", [current, axes], (batch, channels))
    weight, bias = (state[f"classifier.{name}"].numpy() for name in ("weight", "bias"))
    inputs = [pooled, graph.constant(weight), graph.constant(bias)]
    return graph.serialize(
        source, graph.operator("FullyConnected", inputs, (batch, weight.shape[0]))
    )
