"""Turns evidence into routes, and routes into the order of training. Only numbers: no model and no trainer."""

import lazy_loader


# The names are those of `__init__.pyi`. Each loads what it needs when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
