"""MobileNetV1 for PyTorch on fused kernels: training and inference, CPU and CUDA."""

from importlib.metadata import version

from . import fake, flops, functional, nn  # noqa: F401  (the first two only register)
from .config import show_config
from .fused_model import FusedMobileNet
from .fusion import fuse, unfuse
from .inference import FrozenMobileNet
from .model import MobileNet
from .preprocessing import Preprocessing
from .weights import WeightsError, load_pretrained, save_pretrained

__all__ = [
    "FrozenMobileNet",
    "FusedMobileNet",
    "MobileNet",
    "Preprocessing",
    "WeightsError",
    "__version__",
    "functional",
    "fuse",
    "load_pretrained",
    "nn",
    "save_pretrained",
    "show_config",
    "unfuse",
]

__version__ = version("mobilenet_ext")
