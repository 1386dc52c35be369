"""What ends training early."""

import signal


class TrainingError(Exception):
    """Training cannot start or go on; the message says why."""


class Stopped(Exception):
    """A signal asked for the end; what there was has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number  # as a shell reports a process that a signal has ended
