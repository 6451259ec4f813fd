"""``python -m cloudreg``."""

from cloudreg.cli import main

main()
