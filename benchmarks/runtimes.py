"""Contenders outside PyTorch: ONNX Runtime, OpenVINO and LiteRT. CPU, float32, inference.

Each gets its input in the layout it likes best and without a copy per call.
"""

import contextlib
import importlib
import io
import logging
import warnings
from types import ModuleType

import torch
from contenders import INFERENCE, Contender, NotAvailable
from points import Point
from problem import Problem
from torch import Tensor

from mobilenet_ext import MobileNet

_onnx_models: dict[Point, bytes] = {}


def require(module: str, package: str) -> ModuleType:
    """Import `module` or raise `NotAvailable` with the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotAvailable(f"{error}; pip install {package}") from error


def cpu_float32_only(problem: Problem) -> None:
    """Raise `NotAvailable` where these runtimes are not set up to compete."""
    if problem.point.device != "cpu" or problem.point.dtype != "float32":
        raise NotAvailable("benchmarked for float32 on the CPU only")


def onnx_model(problem: Problem) -> bytes:
    """Return the stock model in ONNX, exported once for the runtimes that share it."""
    require("onnxscript", "onnxscript")
    if problem.point not in _onnx_models:
        model = problem.build(MobileNet, channels_last=False)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, (problem.images,), dynamo=True, verbose=False)
        assert program is not None
        _onnx_models.clear()  # the next runtime of this point is the only one that will ask again
        _onnx_models[problem.point] = program.model_proto.SerializeToString()
    return _onnx_models[problem.point]


def onnxruntime(problem: Problem) -> Contender:
    """ONNX Runtime, all graph optimisations."""
    cpu_float32_only(problem)
    ort = require("onnxruntime", "onnxruntime onnx onnxscript")
    options = ort.SessionOptions()
    options.intra_op_num_threads = problem.point.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: problem.images.numpy()}

    def check() -> dict[str, Tensor]:
        return {"logits": torch.from_numpy(session.run(None, feed)[0])[problem.rows]}

    return Contender(lambda: session.run(None, feed), check)


def openvino(problem: Problem) -> Contender:
    """OpenVINO, latency hint."""
    cpu_float32_only(problem)
    ov = require("openvino", "openvino onnx onnxscript")
    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": problem.point.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(onnx_model(problem)), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(problem.images.numpy(), shared_memory=True))

    def run() -> None:
        request.start_async()
        request.wait()

    def check() -> dict[str, Tensor]:
        run()
        logits = torch.from_numpy(request.get_output_tensor().data.copy())
        return {"logits": logits[problem.rows]}

    return Contender(run, check)


def litert(problem: Problem) -> Contender:
    """LiteRT (TensorFlow Lite) with XNNPACK, on the model as Keras's converter writes it: NHWC."""
    cpu_float32_only(problem)
    interpreters = require("ai_edge_litert.interpreter", "ai-edge-litert")
    from tflite import write_tflite

    content = write_tflite(problem.state, problem.point.batch, problem.point.resolution)
    interpreter = interpreters.Interpreter(model_content=content, num_threads=problem.point.threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    result = interpreter.get_output_details()[0]["index"]
    interpreter.set_tensor(source, problem.images.permute(0, 2, 3, 1).contiguous().numpy())

    def check() -> dict[str, Tensor]:
        interpreter.invoke()
        return {"logits": torch.from_numpy(interpreter.get_tensor(result))[problem.rows]}

    return Contender(interpreter.invoke, check)


INFERENCE |= {"onnxruntime": onnxruntime, "openvino": openvino, "litert": litert}
