"""`mobilenet-ext doctor`: what is installed, what was loaded, and why not."""

import argparse

HELP = "what is installed, what was loaded, and why not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(options: argparse.Namespace) -> int:
    """Print the report; 1 if something is wrong."""
    from ..config import doctor

    return doctor()
