"""``python -m hermes.cli``: the command ``hermes``."""

import sys

from hermes.cli.command import main

sys.exit(main())
