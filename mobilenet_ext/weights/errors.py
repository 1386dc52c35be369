"""The error that everything in this package raises for a file that it cannot take."""

MAX_NAMED = 8  # tensors that a message lists


class WeightsError(ValueError):
    """The file is damaged, hostile or does not fit; the message names the file and its tensors."""


def listed(names: list[str]) -> str:
    """Join names for a message, which many of them must not make unreadable."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
