"""The survey's augmentation on whole batches: random shifts and mirrored images.

A shift by a fraction of a pixel, a repeated edge and a mirrored row are all weighted sums of the
row's pixels. So an image is X, and its augmented self R X C^T, with two small matrices an image.
"""

import torch
from torch import Tensor

PIXELS = {"symmetric": (127.5, 1.0), "unit": (255.0, 0.0)}  # x / divisor - offset


def mean_and_std(pixels: str) -> tuple[float, float]:
    """Return what `normalize` takes away and divides by, for pixels in [0, 1]."""
    divisor, offset = PIXELS[pixels]
    return offset * divisor / 255, divisor / 255


def normalize(images: Tensor, pixels: str = "symmetric") -> Tensor:
    """Map uint8 pixels [N, C, H, W] to float32: `x / 127.5 - 1`, or `x / 255` for "unit"."""
    divisor, offset = PIXELS[pixels]
    return images.float().div_(divisor).sub_(offset)


def augment(images: Tensor, chance: Tensor, *, shift: float = 0.1, flip: bool = True) -> Tensor:
    """Shift and mirror every image of a batch by its own random amount, as the survey did.

    Shifts are continuous and uniform in ±`shift` of the height and of the width, interpolated
    bilinearly, with the edge pixels repeated; half of the images are mirrored.

    Args:
        images: [N, C, H, W], floating point.
        chance: [N, 3], uniform in [0, 1): for the vertical shift, the horizontal one, the mirror.
        shift: Largest shift, as a fraction of the height and of the width.
        flip: Whether to mirror at all.

    Returns:
        New images [N, C, H, W].
    """
    count, channels, height, width = images.shape
    chance = chance.to(images.device)
    mirror = (chance[:, 2] < 0.5) & flip
    if shift == 0:
        return torch.where(mirror.view(-1, 1, 1, 1), images.flip(-1), images)
    vertical, horizontal = ((2 * chance[:, :2] - 1) * shift).unbind(1)
    rows = _weights(vertical * height, height, torch.zeros_like(mirror)).to(images.dtype)
    columns = _weights(horizontal * width, width, mirror).to(images.dtype)
    shifted = torch.bmm(images.reshape(count, -1, width), columns.transpose(1, 2))
    return torch.matmul(rows[:, None], shifted.view(count, channels, height, width))


def _weights(shift: Tensor, size: int, mirror: Tensor) -> Tensor:
    """Return [N, size, size]: the weight of each source pixel (last) in each result pixel."""
    pixels = torch.arange(size, dtype=torch.float32, device=shift.device)
    source = torch.where(mirror[:, None], size - 1 - pixels, pixels)
    source = (source + shift[:, None]).clamp_(0, size - 1)
    return (1 - (source[:, :, None] - pixels).abs()).clamp_(min=0)
