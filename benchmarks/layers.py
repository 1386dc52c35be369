"""The nine depthwise layers of MobileNet 1.0 at 224 pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A 3x3 depthwise convolution with BatchNorm and ReLU6; padding is 1 or, strided, (0, 1)."""

    size: int  # height and width of the input
    stride: int
    channels: int
    count: int = 1  # how often the network has it

    @property
    def name(self) -> str:
        """Return e.g. `112/1/32`: size, stride, channels."""
        return f"{self.size}/{self.stride}/{self.channels}"

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom, as Keras pads."""
        return (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1)

    @property
    def input_elements(self) -> int:
        """Elements of one image's input."""
        return self.channels * self.size**2

    @property
    def output_elements(self) -> int:
        """Elements of one image's output."""
        return self.channels * (self.size // self.stride) ** 2


DEPTHWISE = (
    Layer(112, 1, 32),
    Layer(112, 2, 64),
    Layer(56, 1, 128),
    Layer(56, 2, 128),
    Layer(28, 1, 256),
    Layer(28, 2, 256),
    Layer(14, 1, 512, count=5),
    Layer(14, 2, 512),
    Layer(7, 1, 1024),
)
