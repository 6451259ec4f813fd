"""From raw light-sheet tiles to a registered brain with numbers for every region."""

from importlib.metadata import version

__version__ = version("cloudreg")
