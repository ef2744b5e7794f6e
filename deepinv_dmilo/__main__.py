"""``python -m deepinv_dmilo``: the command line."""

import sys

from deepinv_dmilo.tools.cli import main

sys.exit(main())
