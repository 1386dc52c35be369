"""MobileNetV1 for PyTorch on fused kernels: training and inference, CPU and CUDA."""

from importlib.metadata import version

from . import fake, functional, nn  # noqa: F401  (fake only registers shapes of the ops)
from .config import show_config
from .fused_model import FusedMobileNet
from .inference import FrozenMobileNet
from .model import MobileNet

__all__ = [
    "FrozenMobileNet",
    "FusedMobileNet",
    "MobileNet",
    "__version__",
    "functional",
    "nn",
    "show_config",
]

__version__ = version("mobilenet_ext")
