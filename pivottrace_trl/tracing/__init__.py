"""
Turns a model and its rollouts into traces: statistics of attention and of next-token distributions, token by token.

A *rollout* is a prompt and a sampled response. A *tracer* puts hooks into a model for one forward pass. A *capture* is
what they collect during that pass, as tensors over the rows of the batch. A *trace* is what is kept of one response. A
*signal* is one field of a trace, usually one number per token. A *pivot* is a token where the attention signal jumps.
"""

import lazy_loader


# The names are those of `__init__.pyi`. Each loads what it needs when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
