"""The same examples each time, however slow the machine."""

from hypothesis import settings

settings.register_profile("cloudreg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("cloudreg")
