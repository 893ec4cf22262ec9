"""Rollouts in padded batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pivottrace_trl import Rollout
from pivottrace_trl.tracing.batches import pad_batch, plan_batches


PAD = 0
ROLLOUTS = st.lists(
    st.builds(
        lambda prompt, completion: Rollout(list(range(1, prompt + 1)), list(range(100, 100 + completion))),
        st.integers(1, 30),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=90,
)


@given(ROLLOUTS, st.integers(1, 400))
def test_every_rollout_is_in_one_batch_and_no_batch_over_budget(rollouts, token_budget):
    indices = range(0, len(rollouts), 2)
    batches = [pad_batch(rollouts, batch, PAD) for batch in plan_batches(rollouts, indices, token_budget)]
    assert sorted(index for batch in batches for index in batch.indices) == list(indices)
    for batch in batches:
        assert batch.input_ids.numel() <= token_budget or len(batch.indices) == 1
        assert len(batch.indices) <= 64
    lengths = [[len(rollouts[i].prompt_ids) + len(rollouts[i].completion_ids) for i in b.indices] for b in batches]
    assert sum(lengths, []) == sorted(sum(lengths, []), reverse=True)


@given(ROLLOUTS)
def test_tokens_stand_where_the_masks_say(rollouts):
    for indices in plan_batches(rollouts, range(len(rollouts)), 10_000):
        batch = pad_batch(rollouts, indices, PAD)
        assert batch.response_mask.shape == (len(batch.indices), batch.num_shown)
        # A response token is produced one position before it stands.
        produced = torch.nn.functional.pad(batch.response_mask, (batch.input_ids.shape[1] - batch.num_shown, 0))
        stands = produced.roll(1, dims=1).bool()
        for row, index in enumerate(batch.indices):
            real = batch.attention_mask[row].bool()
            assert batch.input_ids[row, real].tolist() == rollouts[index].prompt_ids + rollouts[index].completion_ids
            assert (batch.input_ids[row, ~real] == PAD).all()
            assert batch.input_ids[row, stands[row]].tolist() == rollouts[index].completion_ids
