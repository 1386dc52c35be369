"""Pretrained weights: reading and writing them, in this package's format and in others'."""

from .convert import export_pretrained
from .errors import WeightsError
from .load import load_pretrained
from .own import save_pretrained

__all__ = ["WeightsError", "export_pretrained", "load_pretrained", "save_pretrained"]
