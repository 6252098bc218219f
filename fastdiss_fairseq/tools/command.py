"""What all console commands share."""

import logging
import os
import sys
import warnings

#: The folder that fairseq's commands take as ``--user-dir``.
PLUGIN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_as_command(main, goes_on: bool = False) -> None:
    """Run ``main``; mistakes of the user's end it with exit code 1 and one line (compat's hook).

    Args:
        goes_on: whether the same command goes on with what was interrupted.
    """
    logging.getLogger().setLevel(logging.WARNING)  # fairseq's commands configure DEBUG for all
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # fairseq asks for it without a GPU, too
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(f"interrupted{'; the same command goes on from here' if goes_on else ''}")
    except BrokenPipeError:  # whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
