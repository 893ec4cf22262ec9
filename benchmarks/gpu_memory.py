"""
Work out what a training run with the callback needs of a GPU, for the table of docs/gpus.md. Nothing is run.

    python benchmarks/gpu_memory.py
"""

from dataclasses import dataclass


GB = 1e9
RANK, COMPLETIONS, PROMPTS_AT_ONCE, TOKENS = 16, 8, 32, 256 + 512
# Tokens of a scoring pass, and numbers in each of the two blocks that tracing works in (float32).
PASS_TOKENS, BLOCK = 2048, 2**23


@dataclass(frozen=True)
class Shape:
    """A Qwen2.5 model: sizes as in its config.json."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    key_value: int  # width of keys, and of values
    is_tied: bool
    vocabulary: int = 151_936

    @property
    def linear(self) -> int:
        """Weights in linear layers, which 4-bit loading quantizes."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.key_value
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding(self) -> int:
        return self.hidden * self.vocabulary * (1 if self.is_tied else 2)

    @property
    def adapter(self) -> int:
        """Weights of LoRA on all linear layers."""
        attention = 2 * 2 * self.hidden + 2 * (self.hidden + self.key_value)
        return self.layers * RANK * (attention + 3 * (self.hidden + self.intermediate))

    def needs(self, bits: int) -> dict[str, float]:
        """GB by part. nf4 has half a byte a weight, and four bytes for each block of 64; embeddings keep 16 bits."""
        weights = (0.5 + 4 / 64) * self.linear if bits == 4 else bits / 8 * self.linear
        weights += (2 if bits == 4 else bits / 8) * self.embedding
        # Float32 weights, gradients and the two moments of Adam.
        adapter = 16 * self.adapter
        cache = PROMPTS_AT_ONCE * TOKENS * 2 * self.layers * self.key_value * 2
        # Logits in half precision and once more in float32.
        scoring = PASS_TOKENS * self.vocabulary * (2 + 4) + 2 * 4 * BLOCK
        # With gradient checkpointing: the input of each layer, and the largest layer once more.
        step = COMPLETIONS * TOKENS * 2 * (self.layers * self.hidden + 4 * self.hidden + 3 * self.intermediate)
        parts = {"weights": weights, "adapter": adapter, "largest moment": max(cache, scoring, step)}
        return {name: size / GB for name, size in parts.items()}


SHAPES = [
    Shape("Qwen2.5-0.5B", 24, 896, 4864, 128, True),
    Shape("Qwen2.5-1.5B", 28, 1536, 8960, 256, True),
    Shape("Qwen2.5-3B", 36, 2048, 11008, 256, True),
    Shape("Qwen2.5-7B", 28, 3584, 18944, 512, False),
]


def main() -> None:
    print("| model | loaded in | weights | adapter | largest moment | together |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        for bits in (4, 16):
            needs = shape.needs(bits)
            sizes = " | ".join(f"{size:.1f}" for size in [*needs.values(), sum(needs.values())])
            print(f"| {shape.name} | {bits} bits | {sizes} |")


if __name__ == "__main__":
    main()
