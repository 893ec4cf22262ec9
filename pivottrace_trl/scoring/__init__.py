"""Turns a pool into one score per prompt."""

import lazy_loader


# The names are those of `__init__.pyi`. Each loads what it needs when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
