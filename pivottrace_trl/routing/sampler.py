"""The order of prompts as a function of (seed, epoch, routes)."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from torch.utils.data import Sampler

from .triage import Route


class PivotRoutedSampler(Sampler[int]):
    """
    TRL's [`~trl.trainer.utils.RepeatSampler`] with routes. It repeats prompts in the same pattern, never yields a
    discarded prompt, and never yields a weak prompt twice in an epoch as long as annotated ones can fill it.

    The first routes fix the number of prompts per epoch, because the trainer derives its number of steps and its
    learning-rate schedule from the length once. If later routes keep fewer prompts, annotated ones are repeated to
    fill the epoch. If they keep more, all annotated prompts are used and weak ones are drawn at random. If all prompts
    are discarded, the epoch is empty, although its length is still that of at least one batch. With neutral routes,
    the order equals that of `RepeatSampler`, epoch by epoch.

    Args:
        data_source (`Sized`):
            Dataset to sample from.
        mini_repeat_count (`int`):
            Number of times to repeat each index per batch (the number of generations).
        batch_size (`int`, *optional*, defaults to `1`):
            Number of unique indices per batch.
        repeat_count (`int`, *optional*, defaults to `1`):
            Number of times to repeat each batch.
        shuffle (`bool`, *optional*, defaults to `True`):
            Whether to shuffle the dataset.
        seed (`int`, *optional*):
            Random seed (only affects this sampler).
        routes (`np.ndarray` of shape `(len(data_source),)`, *optional*):
            A [`Route`] per prompt. Defaults to keeping every prompt.
        num_prompts (`int`, *optional*):
            Number of prompts per epoch, for a resumed run. Defaults to the number that the first routes keep.

    Raises:
        ValueError: if the routes do not match the dataset.

    Example:
    ```python
    >>> routes = [Route.ANNOTATE, Route.DISCARD, Route.WEAK]
    >>> sampler = PivotRoutedSampler(["a", "b", "c"], mini_repeat_count=2, routes=routes, shuffle=False)
    >>> list(sampler)
    [0, 0, 2, 2]
    ```
    """

    def __init__(
        self,
        data_source: Sized,
        mini_repeat_count: int,
        batch_size: int = 1,
        repeat_count: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
        routes: np.ndarray | None = None,
        num_prompts: int | None = None,
    ):
        self.num_samples = len(data_source)
        self.mini_repeat_count = mini_repeat_count
        self.batch_size = batch_size
        self.repeat_count = repeat_count
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.set_routes(np.full(self.num_samples, Route.ANNOTATE, np.int8) if routes is None else routes)
        if num_prompts is None:
            num_kept = int((self.routes != Route.DISCARD).sum())
            num_prompts = num_kept // batch_size * batch_size
            if num_prompts == 0 and self.num_samples >= batch_size:
                num_prompts = batch_size
        self.num_prompts = num_prompts

    def set_routes(self, routes: np.ndarray) -> None:
        """
        Set new routes. An iterator that was made before keeps the old ones.

        Args:
            routes (`np.ndarray` of shape `(num_samples,)`):
                A [`Route`] per prompt.

        Raises:
            ValueError: if there is not one route per prompt.
        """
        routes = np.array(routes, dtype=np.int8)
        if routes.shape != (self.num_samples,):
            raise ValueError(f"`routes` has shape {routes.shape}, but the dataset has {self.num_samples} prompts.")
        self.routes = routes

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch whose order the next iterator yields.

        Args:
            epoch (`int`):
                Epoch, counted from 0.
        """
        self.epoch = epoch

    def _plan(self) -> list[int]:
        """The `num_prompts` prompts of this epoch, in order."""
        order = np.arange(self.num_samples)
        if self.shuffle:
            # `RepeatSampler` draws one permutation per epoch from one generator. Drawing the earlier permutations
            # restores its state.
            generator = torch.Generator()
            if self.seed is not None:
                generator.manual_seed(self.seed)
            for _ in range(self.epoch + 1):
                order = torch.randperm(self.num_samples, generator=generator).numpy()
        route = self.routes[order]
        kept, annotated = order[route != Route.DISCARD], order[route == Route.ANNOTATE]
        if len(kept) > self.num_prompts:
            # Labels were paid for, so weak prompts are left out first.
            weak = order[route == Route.WEAK][: max(self.num_prompts - len(annotated), 0)]
            chosen = np.isin(order, np.concatenate([annotated, weak]))
            return order[chosen][: self.num_prompts].tolist()
        if len(kept) == 0:
            return []
        fillers = annotated if len(annotated) else kept
        return np.concatenate([kept, np.resize(fillers, self.num_prompts - len(kept))]).tolist()

    def __iter__(self) -> Iterator[int]:
        # The plan is made here, not while iterating, as routes may change while a loader reads ahead.
        return self._repeat(self._plan())

    def _repeat(self, plan: list[int]) -> Iterator[int]:
        for start in range(0, len(plan) - self.batch_size + 1, self.batch_size):
            for _ in range(self.repeat_count):
                for index in plan[start : start + self.batch_size]:
                    yield from [index] * self.mini_repeat_count

    def __len__(self) -> int:
        return self.num_prompts * self.mini_repeat_count * self.repeat_count
