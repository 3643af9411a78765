"""The command ``fcdcc``: the command line of the project, which is part of the extension module."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Runs the command with the arguments of the process, and ends with its exit status."""
    # An interrupt ends the command as it ends any other; Python would only note it until the command returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ._fcdcc import command, missing_environment

    for name, value in missing_environment():
        os.environ[name] = value
    sys.exit(command(["fcdcc", *sys.argv[1:]]))
