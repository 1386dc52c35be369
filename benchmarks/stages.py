"""Runs commands one after the other within a time budget, and loses nothing that one has done.

A stage that fails or runs out of time is reported as that, with the last lines that it printed;
all processes it started are ended with it, and the next stage has its turn.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LEAST_SECONDS = 10.0  # a stage with less is not started
LAST_LINES = 12
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}  # what is in a buffer is lost when its process is ended
MOST_CHARACTERS = 300  # the reason of a failure stands at the end


@dataclass(frozen=True)
class Stage:
    """One command, its output in a log file."""

    name: str
    command: Sequence[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    accepted: tuple[int, ...] = (0,)  # exit statuses that mean that the command did its work


@dataclass(frozen=True)
class Outcome:
    """What came of a stage."""

    name: str
    status: str  # "done", "failed", "out of time" or "not started"
    seconds: float = 0.0
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class Budget:
    """Seconds that all stages have together."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock."""
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self._end - self._clock())

    def grant(self, stage: Stage) -> float:
        """Return the seconds that a stage may take; 0 when it is not worth starting."""
        granted = min(stage.limit, self.left())
        return granted if granted >= min(LEAST_SECONDS, stage.limit) else 0.0


def run_stage(stage: Stage, budget: Budget, log: Path, folder: Path) -> Outcome:
    """Run a stage in `folder`, which must not be the source tree: it would hide the package."""
    seconds = budget.grant(stage)
    if not seconds:
        return Outcome(stage.name, "not started", 0.0, f"{budget.left():.0f} s were left")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=folder,
                env={**os.environ, **UNBUFFERED, **stage.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(stage.name, "failed", 0.0, str(error))
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_session(process)
    took = time.monotonic() - start
    if status is None:
        return Outcome(stage.name, "out of time", took, f"stopped after {seconds:.0f} s")
    if status not in stage.accepted:
        return Outcome(stage.name, "failed", took, f"exit status {status}: {last_lines(log)}")
    return Outcome(stage.name, "done", took)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, compilers in the background for example."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            break
        if signum == signal.SIGTERM:
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
    process.wait()


def last_lines(log: Path) -> str:
    """Return the end of a log on one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    text = " / ".join(line.strip() for line in lines[-LAST_LINES:] if line.strip())
    return text if len(text) <= MOST_CHARACTERS else "… " + text[-MOST_CHARACTERS:]
