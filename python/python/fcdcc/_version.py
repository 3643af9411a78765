"""The version of the package, which is that of the library in it."""

from ._fcdcc import version

__version__: str = version()
