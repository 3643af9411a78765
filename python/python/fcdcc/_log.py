"""Log records of the library in Python's ``logging``, under the logger ``fcdcc`` and those below it."""

from __future__ import annotations

import logging

from . import _fcdcc

_LOGGER = logging.getLogger("fcdcc")
# Programs that set up no logging see no records: reports and exceptions say what matters.
_LOGGER.addHandler(logging.NullHandler())


def sync() -> None:
    """Passes on the records that the logger ``fcdcc`` wants now. Called when pools and models are made."""
    _fcdcc.start_logging()
    _fcdcc.log_level(_LOGGER.getEffectiveLevel())
