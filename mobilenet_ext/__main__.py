"""`python -m mobilenet_ext` is the command `mobilenet-ext`."""

import sys

from .cli import main

sys.exit(main())
