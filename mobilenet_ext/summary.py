"""What MobileNetV1 costs: its layers by their Keras names, with output sizes, parameters and work.

Pure arithmetic from the definition; nothing is built. Parameters are counted as Keras counts them:
the moving statistics of BatchNorm are parameters, though not trainable ones.
"""

from dataclasses import dataclass

from .model import BLOCKS, STEM_FILTERS

ALPHAS = (1.0, 0.75, 0.5, 0.25)
RESOLUTIONS = (224, 192, 160, 128)


@dataclass(frozen=True)
class Layer:
    """One row of the summary."""

    name: str
    output: tuple[int, ...]  # (H, W, C) or (features,)
    trainable: int = 0
    non_trainable: int = 0
    multiply_adds: int = 0

    @property
    def parameters(self) -> int:
        """Trainable and non-trainable parameters."""
        return self.trainable + self.non_trainable


def layers(
    alpha: float = 1.0, resolution: int = 224, num_classes: int = 1000, *, in_channels: int = 3
) -> list[Layer]:
    """Return the layers of the network as Keras builds it.

    Args:
        alpha: Width multiplier; a layer has `int(filters * alpha)` channels.
        resolution: Height and width of the image, at least 32.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the image.

    Returns:
        The convolutions and BatchNorms in order, then `conv_preds`.

    Raises:
        ValueError: If the image is too small, or alpha leaves a layer without channels.
    """
    if resolution < 32:
        raise ValueError(f"summary: resolution must be at least 32, got {resolution}")
    if int(STEM_FILTERS * alpha) < 1:
        raise ValueError(f"summary: alpha must be at least 1/{STEM_FILTERS}, got {alpha}")
    size, channels = -(-resolution // 2), int(STEM_FILTERS * alpha)
    rows = _convolution("conv1", size, channels, 9 * in_channels * channels)
    for number, (stride, filters) in enumerate(BLOCKS, start=1):
        # Stride 2 pads one row and column at the end: floor(size / 2).
        size //= stride
        rows += _convolution(f"conv_dw_{number}", size, channels, 9 * channels)
        width = int(filters * alpha)
        rows += _convolution(f"conv_pw_{number}", size, width, channels * width)
        channels = width
    weights = channels * num_classes
    return [*rows, Layer("conv_preds", (num_classes,), weights + num_classes, 0, weights)]


def _convolution(name: str, size: int, channels: int, weights: int) -> list[Layer]:
    output = (size, size, channels)
    return [
        Layer(name, output, weights, 0, weights * size * size),
        Layer(name + "_bn", output, 2 * channels, 2 * channels),
    ]


def multiply_adds(alpha: float = 1.0, resolution: int = 224, num_classes: int = 1000) -> int:
    """Return the multiply-adds of one image, padded taps included."""
    return sum(layer.multiply_adds for layer in layers(alpha, resolution, num_classes))


def summary(alpha: float = 1.0, resolution: int = 224, num_classes: int = 1000) -> str:
    """Return the network as a table, one layer a line, with totals."""
    network = layers(alpha, resolution, num_classes)
    rows: list[tuple[str, ...]] = [("layer", "output", "parameters", "multiply-adds")]
    rows += [
        (
            layer.name,
            "×".join(str(extent) for extent in layer.output),
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        )
        for layer in network
    ]
    trainable = sum(layer.trainable for layer in network)
    total = sum(layer.parameters for layer in network)
    work = sum(layer.multiply_adds for layer in network)
    return "\n".join(
        [
            f"MobileNetV1, alpha {alpha:g}, {resolution}×{resolution}×3, {num_classes} classes",
            *_aligned(rows),
            f"total parameters          {total:>12,}",
            f"trainable parameters      {trainable:>12,}",
            f"non-trainable parameters  {total - trainable:>12,}",
            f"multiply-adds             {work:>12,}",
        ]
    )


def size_table(num_classes: int = 1000) -> str:
    """Return multiply-adds by alpha and resolution, and the parameters of each alpha."""
    sizes = [f"{resolution}" for resolution in RESOLUTIONS]
    rows = [("alpha", *sizes, "parameters", "trainable")]
    for alpha in ALPHAS:
        network = layers(alpha, 224, num_classes)
        work = [multiply_adds(alpha, resolution, num_classes) for resolution in RESOLUTIONS]
        rows.append(
            (
                f"{alpha:g}",
                *(f"{count / 1e6:.1f} M" for count in work),
                f"{sum(layer.parameters for layer in network):,}",
                f"{sum(layer.trainable for layer in network):,}",
            )
        )
    title = f"MobileNetV1, {num_classes} classes: multiply-adds by alpha and resolution"
    return "\n".join([title, *_aligned(rows)])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        numbers = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    return lines
