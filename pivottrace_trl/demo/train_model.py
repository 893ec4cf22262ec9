"""
Train the demo's model from scratch.

    python -m pivottrace_trl.demo.train_model --output DIR

Its training data has forgotten carries and few long chains. The model therefore masters some problems, has others out
of reach, and is unsure about most, above all where there is a carry.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from .arithmetic import MAX_TERMS, MIN_TERMS, sample_problem, work_out


SEED = 0
# The learning rate would reach zero at `SCHEDULE_STEPS`. Training stops earlier, before everything is mastered.
SCHEDULE_STEPS = 1200
NUM_STEPS = 750
BATCH_SIZE = 96
LEARNING_RATE = 3e-3
LEVEL_WEIGHTS = np.array([0.30, 0.25, 0.18, 0.12, 0.08, 0.05, 0.02])  # of chains with 2, 3, ..., 8 terms
CARELESSNESS = 0.2
SPECIAL_TOKENS = ["<pad>", "<eos>", "<user>", "<assistant>"]
TOKENS = [*"0123456789+-=?;}", r"\boxed{"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    r"""A tokenizer of single characters and `\boxed{`."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS + TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|."), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model() -> LlamaForCausalLM:
    """A Llama of a million parameters with fresh weights."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(TOKENS),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of worked solutions with mistakes. The loss covers only the solutions."""
    rng = np.random.default_rng(SEED)
    levels = np.arange(MIN_TERMS, MAX_TERMS + 1)
    while True:
        problems = [sample_problem(rng, int(level)) for level in rng.choice(levels, BATCH_SIZE, p=LEVEL_WEIGHTS)]
        texts = [f"<user>{p}<assistant>{work_out(p, rng, CARELESSNESS)[0]}<eos>" for p in problems]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        # <user>, one token per character, <assistant>
        prompt_lengths = torch.tensor([len(problem) + 2 for problem in problems])
        is_prompt = torch.arange(batch["input_ids"].shape[1])[None, :] < prompt_lengths[:, None]
        labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | is_prompt, -100)
        yield {**batch, "labels": labels}


def train(num_steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """
    Train from scratch. The result is always the same on the same machine.

    Args:
        num_steps (`int`): number of optimizer steps.

    Returns:
        `tuple[LlamaForCausalLM, PreTrainedTokenizerFast]`: the model in float32, and its tokenizer.
    """
    set_seed(SEED)
    tokenizer, model = make_tokenizer(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max(SCHEDULE_STEPS, num_steps), pct_start=0.1
    )
    model.train()
    bar = tqdm(zip(range(num_steps), batches(tokenizer)), total=num_steps, mininterval=5)
    for step, batch in bar:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model, tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output_dir: Path) -> None:
    """
    Save model (bfloat16) and tokenizer.

    Args:
        model ([`~transformers.LlamaForCausalLM`]): the model.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): its tokenizer.
        output_dir (`Path`): folder.
    """
    model = cast(Any, copy.deepcopy(model)).to(torch.bfloat16)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


@torch.no_grad()
def pass_rates(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    level: int,
    num_problems: int = 32,
    num_samples: int = 8,
) -> np.ndarray:
    """
    Share of right answers for fresh problems of one level, sampled at temperature 1.

    Args:
        model ([`~transformers.LlamaForCausalLM`]): the model.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): its tokenizer.
        level (`int`): number of terms.
        num_problems (`int`, *optional*, defaults to `32`): number of problems.
        num_samples (`int`, *optional*, defaults to `8`): answers each.

    Returns:
        `np.ndarray` of shape `(num_problems,)`: pass rates in `[0, 1]`.
    """
    model.eval()
    rng = np.random.default_rng(SEED + level)
    problems = [sample_problem(rng, level) for _ in range(num_problems)]
    texts = [f"<user>{problem}<assistant>" for problem in problems for _ in range(num_samples)]
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    output = cast(Any, model).generate(
        **batch, do_sample=True, top_k=0, max_new_tokens=96, eos_token_id=1, pad_token_id=0
    )
    responses = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    solutions = [work_out(problem)[1] for problem in problems for _ in range(num_samples)]
    right = [text.endswith(rf"\boxed{{{solution}}}") for text, solution in zip(responses, solutions, strict=True)]
    return np.array(right).reshape(num_problems, num_samples).mean(axis=1)


def main() -> None:
    """Train, save, and print how well each level is mastered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    args = parser.parse_args()
    model, tokenizer = train(args.steps)
    # A new tokenizer, as the one used in training has its padding settings stored.
    save(model, make_tokenizer(), args.output)
    print("terms  pass rate  mastered (>= 0.9)  out of reach (<= 0.1)")
    for level in range(MIN_TERMS, MAX_TERMS + 1):
        rates = pass_rates(model, tokenizer, level)
        print(f"{level:5}  {rates.mean():9.2f}  {(rates >= 0.9).mean():17.2f}  {(rates <= 0.1).mean():21.2f}")


if __name__ == "__main__":
    main()
