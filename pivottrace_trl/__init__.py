"""Pick the prompts that deserve a label: PivotTrace (arXiv 2606.04503) as a plugin for TRL's GRPO and RLOO."""

import lazy_loader

from .training.versions import check_versions


__version__ = "0.1.0"

check_versions()

# The names are those of `__init__.pyi`. Each loads what it needs when it is first used: the parts that only keep
# answers work without torch and start at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
