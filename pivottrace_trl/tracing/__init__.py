"""
A model and its rollouts to traces: what attention and distributions show, token by token.

A *rollout* is a prompt and a sampled response. A *tracer* puts hooks into a model for one forward pass; a *capture* is
what they collect during that pass, as tensors over the rows of the batch; a *trace* is what is kept of one response. A
*signal* is one field of it, most often a number a token; where it jumps is a *pivot*.
"""

import lazy_loader


# The names are those of `__init__.pyi`. Each loads what it needs when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
