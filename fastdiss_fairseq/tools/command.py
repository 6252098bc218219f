"""What all console commands share."""

import logging
import os
import sys

#: The folder that fairseq's commands take as ``--user-dir``.
PLUGIN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_as_command(main) -> None:
    """Run ``main``; mistakes of the user's end it with exit code 1 and one line (compat's hook)."""
    logging.getLogger().setLevel(logging.WARNING)  # fairseq's commands configure DEBUG for all
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
