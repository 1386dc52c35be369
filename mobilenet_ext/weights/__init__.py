"""Pretrained weights: reading and writing them, in this package's format and in others'."""

from .cache import cache_folder, download
from .catalog import known_weights
from .convert import export_pretrained
from .errors import WeightsError
from .load import load_pretrained
from .own import save_pretrained

__all__ = [
    "WeightsError",
    "cache_folder",
    "download",
    "export_pretrained",
    "known_weights",
    "load_pretrained",
    "save_pretrained",
]
