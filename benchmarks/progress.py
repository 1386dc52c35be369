"""One line of progress: a bar on a terminal, plain lines everywhere else."""

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Progress over `total` steps, on stderr so that tables can be piped."""

    def __init__(self, title: str, total: int) -> None:
        """Show `title` at once."""
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, leave=False, file=sys.stderr)
        else:
            print(title, file=sys.stderr, flush=True)

    def step(self, what: str = "") -> None:
        """One step is done; `what` is named on the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(what, refresh=False)
            self._bar.update()

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clear the bar."""
        if self._bar is not None:
            self._bar.close()
