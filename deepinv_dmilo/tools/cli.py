"""Where a ``deepinv-dmilo`` looks that was installed as editable before ``deepinv_dmilo.__main__`` was its home."""

import sys


def main() -> None:
    """Print what to type."""
    sys.exit("deepinv-dmilo: error: the command line has moved since it was installed; type: pip install -e .")
