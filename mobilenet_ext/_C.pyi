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

def stamp_tensors(dicts: list[Any]) -> int | None:
    """Hash of the tensors that dicts hold, of their versions and of where their data lies.

    None if one is an inference tensor or of a subclass: such can change unnoticed.
    """

def any_items(dicts: list[Any]) -> bool:
    """Tell whether one of the dicts holds something."""

def any_training(modules: list[Any]) -> bool:
    """Tell whether one of the modules is in training mode."""
