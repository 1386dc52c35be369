from typing import Any

def available_isas() -> list[str]:
    """Instruction sets this CPU can run, best last."""

def build_info() -> dict[str, str]:
    """How this library was built: torch, compiler, architecture."""

def isa() -> str:
    """The instruction set in use."""

def set_isa(name: str) -> None:
    """Makes another instruction set the one in use.

    Raises:
        ValueError: This CPU cannot run it, or there is none of that name.
    """

def stamp_objects(dicts: list[Any]) -> int:
    """Hash of the objects that dicts hold, and of their types."""

def any_items(dicts: list[Any]) -> bool:
    """Tell whether one of the dicts holds something."""

def any_training(modules: list[Any]) -> bool:
    """Tell whether one of the modules, of which these are the dicts, is in training mode."""

def is_plain_inference() -> bool:
    """Tell whether results need no gradients, autocast casts nothing and no trace is taken."""

class ModelWatch:
    """Tells whether a model has changed.

    A tensor has changed when another object took its place, when it was written to, or when its
    data lies elsewhere. Tells objects apart by their addresses, and keeps none: keep them, and the
    data of the tensors.

    Args:
        modules: dicts of modules.
        hooks: dicts of hooks.
        modes: dicts of modules whose mode counts.
        tensors: dicts of tensors, or None.
    """

    def __init__(
        self, modules: list[Any], hooks: list[Any], modes: list[Any], tensors: list[Any]
    ) -> None: ...
    def is_reliable(self) -> bool:
        """Tell whether a change can be told: not of inference tensors or of subclasses."""

    def is_current(self) -> bool:
        """Tell whether it is what it was, without hooks and in eval mode.

        False where that cannot be told.
        """
