"""Writes a network in one of the formats that `load_pretrained` reads."""

from __future__ import annotations

import json
import os
import pathlib

from ..checks import require
from ..model import MobileNet
from .containers import require_safetensors
from .huggingface import export_huggingface
from .own import dense_state, draft, save_pretrained
from .timm import export_timm

EXPORTERS = {"huggingface": export_huggingface, "timm": export_timm}
FORMATS = ("safetensors", *EXPORTERS)


def export_pretrained(
    model: MobileNet, path: str | os.PathLike[str], to: str = "safetensors"
) -> pathlib.Path:
    """Write a network for another library.

    Args:
        model: a MobileNet or FusedMobileNet.
        path: of the file for "safetensors", of the folder for the others. There,
            transformers' `from_pretrained(path)` and `timm.create_model("local-dir:" + path)` find
            `model.safetensors` and `config.json`.
        to: "safetensors" (this package's own), "huggingface" or "timm".

    Returns:
        The path.

    Raises:
        WeightsError: the other library has no such network.
        ValueError: the format is not known, or a layer of the model has been replaced.
    """
    require(to in FORMATS, "export_pretrained: to", f"one of {FORMATS}", to)
    if to == "safetensors":
        return save_pretrained(model, path)
    save_file = require_safetensors().torch.save_file
    tensors, texts = EXPORTERS[to](model, dense_state(model))
    folder = pathlib.Path(path)
    for name, content in texts.items():
        with draft(folder / name) as unfinished:
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            unfinished.write_text(text, encoding="utf-8")
    with draft(folder / "model.safetensors") as unfinished:
        save_file(tensors, unfinished, metadata={"format": "pt"})
    return folder
