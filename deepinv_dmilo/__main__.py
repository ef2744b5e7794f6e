"""``python -m deepinv_dmilo``: the command line."""

import sys

from deepinv_dmilo.cli import main

sys.exit(main())
