"""``python -m fcdcc``: the command ``fcdcc``."""

from ._command import main

main()
