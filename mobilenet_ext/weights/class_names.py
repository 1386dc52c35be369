"""The names of ImageNet's 1,000 classes, from torchvision where it is installed."""


def imagenet_class_names(num_classes: int) -> tuple[str, ...] | None:
    """Return the names for 1,000 classes, None for other numbers or without torchvision."""
    if num_classes != 1000:
        return None
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES
    except ImportError:
        return None
    return tuple(_IMAGENET_CATEGORIES)
