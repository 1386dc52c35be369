"""Exports a network as ONNX or as a torch.export program, and compares what came out.

Both are made from the plain MobileNet, so what runs them needs nothing of this package.
"""

import contextlib
import copy
import io
import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .model import MobileNet

__all__ = ["export_onnx", "export_program"]

TOLERANCE = 1e-3  # of logits, against the largest of them


def export_onnx(
    model: MobileNet, path: pathlib.Path, resolution: int | None = None
) -> tuple[str, float]:
    """Write ONNX: `input` [batch, C, R, R] to `logits` [batch, num_classes].

    Class names and preprocessing are in the file's metadata, as JSON.

    Args:
        model: A MobileNet or FusedMobileNet.
        path: Of the file.
        resolution: R; None: that of the training, or 224 where it is not known.

    Returns:
        What it was compared with, and the largest difference of logits.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: ONNX Runtime computes something else.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx asks for it)
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {error.name}: pip install 'mobilenet_ext[export]'"
        ) from error
    plain, example, batch = _prepare(model, resolution)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            plain,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes={"input": {0: batch}},
        )
    assert program is not None
    content = program.model_proto
    onnx.helper.set_model_props(content, _described(model))
    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(
        content.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    run = lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])  # noqa: E731
    difference = _compare("ONNX Runtime", model, run, example)
    onnx.save(content, path)
    return "ONNX Runtime", difference


def export_program(
    model: MobileNet, path: pathlib.Path, resolution: int | None = None
) -> tuple[str, float]:
    """Write a torch.export program [batch, C, R, R] to [batch, num_classes]; see export_onnx."""
    plain, example, batch = _prepare(model, resolution)
    program = torch.export.export(plain, (example,), dynamic_shapes={"input": {0: batch}})
    torch.export.save(program, path, extra_files=_described(model))
    loaded = torch.export.load(path).module()
    return "torch.export", _compare("torch.export", model, loaded, example)


def _prepare(model: MobileNet, resolution: int | None) -> tuple[MobileNet, Tensor, Any]:
    """Return the plain network, an example of its input and the batch's dimension."""
    plain = MobileNet(**model.config)
    plain.load_state_dict(model.state_dict())
    if resolution is None:
        resolution = model.preprocessing.resolution if model.preprocessing else 224
    if resolution < 32:
        raise ValueError(f"export: resolution must be at least 32, got {resolution}")
    shape = (2, model.config["in_channels"], resolution, resolution)
    example = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return plain.eval(), example, torch.export.Dim("batch")


def _described(model: MobileNet) -> dict[str, str]:
    content: dict[str, Any] = {"architecture": model.config}
    if model.class_names:
        content["class_names"] = model.class_names
    if model.preprocessing:
        content["preprocessing"] = model.preprocessing.to_dict()
    return {name: json.dumps(value) for name, value in content.items()}


def _compare(
    what: str, model: MobileNet, run: Callable[[Tensor], Tensor], example: Tensor
) -> float:
    """Return the largest difference, for the batch of the example and for another.

    Raises:
        ValueError: It is more than rounding.
    """
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()  # as the example and `run` are
    worst = 0.0
    for images in (example, example[:1], example.repeat(2, 1, 1, 1)[:3].flip(0)):
        with torch.no_grad():
            expected = model(images)
            difference = float((run(images) - expected).abs().max())
        worst = max(worst, difference)
        largest = max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE * largest:
            raise ValueError(f"export: {what} gives other logits, by up to {difference:.2g}")
    return worst
