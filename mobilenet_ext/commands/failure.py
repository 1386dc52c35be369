"""How a command says that it could not do what was asked."""

import sys


def fail(error: Exception | str) -> int:
    """Print the error and return the exit status for it."""
    print(f"mobilenet-ext: error: {error}", file=sys.stderr)
    return 1
