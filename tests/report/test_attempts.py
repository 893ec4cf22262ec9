"""Where tokens stand in the text: what decoding everything before them says, at a cost linear in the length."""

import string

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pivottrace_trl.report.attempts import text_places, write_attempts
from pivottrace_trl.tracing.rollouts import Rollout
from pivottrace_trl.tracing.trace import ResponseTrace


TEXT = "So 17 + 5 = 22, isn't it? Ça fait 3½ €; 答えは２２です。 Ответ: 22 👍🏽 👩‍👩‍👧 \\boxed{22} naïve ﷽ ok .\n"
WORDS = ["▁the", "▁sum", "▁is", "▁", "two", "ty", "é", "答", "=", "▁22", ".", "\n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return tokenizer


def byte_fallback(*ends: decoders.Decoder) -> Tokenizer:
    """Like SentencePiece: spaces belong to the words, and what has no token is spelt in bytes."""
    vocabulary = {token: number for number, token in enumerate([*WORDS * 1, *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["do", "n", "'", "t", "##not", "it", "##s", ".", ",", "?", "is", "'t", "re", "答", "##é"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="n"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in WORDS], unk_id=3))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def characters() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(string.printable)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level,
    "byte fallback, first space stripped": lambda: byte_fallback(decoders.Strip(" ", 1, 0)),
    "byte fallback": byte_fallback,
    "metaspace": metaspace,
    "word piece": word_piece,
    "characters": characters,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[request.param]())


def places_the_long_way(tokenizer, ids) -> tuple[str, list[int], list[bool]]:
    """The text, the length of the text of all tokens before each place, and whether that text begins the whole one."""
    text = tokenizer.decode(ids)
    prefixes = tokenizer.batch_decode([ids[:place] for place in range(len(ids) + 1)])
    # Part of a character is one broken character in some tokenizers. Others break every byte of a run of bytes.
    agrees = [text.startswith(prefix.removesuffix("\ufffd")) for prefix in prefixes]
    return text, [len(prefix) for prefix in prefixes], agrees


def draw(tokenizer, rng, length: int) -> list[int]:
    """Any tokens, with an ordinary text now and then."""
    ids: list[int] = []
    while len(ids) < length:
        ids += rng.integers(len(tokenizer), size=rng.integers(1, 60)).tolist()
        if rng.random() < 0.5:
            ids += tokenizer(TEXT * 2, add_special_tokens=False)["input_ids"]
    return ids[:length]


def test_the_places_are_those_of_decoding_all_that_comes_before(tokenizer):
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 33, 36, 64, 100, 400, 700):
        ids = draw(tokenizer, rng, length)
        expected_text, expected, agrees = places_the_long_way(tokenizer, ids)
        text, places = text_places(tokenizer, ids, range(length + 1))
        assert text == expected_text
        assert [p for p, known in zip(places, agrees) if known] == [p for p, known in zip(expected, agrees) if known]
        assert 0 <= min(places) and max(places) <= len(text)


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if "fallback" not in kind])
def test_there_is_an_answer_for_every_place(kind):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind]())
    assert all(places_the_long_way(tokenizer, draw(tokenizer, np.random.default_rng(1), 500))[2])


def test_every_place_counts_whatever_others_are_asked_for(tokenizer):
    ids = draw(tokenizer, np.random.default_rng(1), 500)
    expected = text_places(tokenizer, ids, range(501))[1]
    places = [499, 3, 250, 251, 3, 500, 0]
    assert text_places(tokenizer, ids, places)[1] == [expected[place] for place in places]


def test_a_character_that_is_spelt_in_bytes_belongs_to_the_first_of_them():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_fallback())
    text = "答👍🏽é½0" * 60
    ids, starts = [], []
    for place, character in enumerate(text):
        # As letters of its own in the vocabulary, or as bytes.
        spelling = [character] if character in WORDS else [f"<0x{byte:02X}>" for byte in character.encode()]
        ids += tokenizer.convert_tokens_to_ids(spelling)
        starts += [place] + [place + 1] * (len(spelling) - 1)
    assert text_places(tokenizer, ids, range(len(ids))) == (text, starts)


def test_a_long_run_of_bytes_that_are_no_text_stays_within_the_text():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_fallback())
    words = tokenizer.convert_tokens_to_ids(["▁sum", "▁is"] * 50)
    noise = np.random.default_rng(2).integers(len(WORDS), len(tokenizer), size=3000).tolist()
    text, places = text_places(tokenizer, words + noise + words, range(3201))
    assert text == " sum is" * 50 + "\ufffd" * 3000 + " sum is" * 50
    assert places[:101] == [7 * (n // 2) + 4 * (n % 2) for n in range(101)]
    # Inside, to within the stretch of text before it.
    assert max(abs(place - expected) for place, expected in zip(places[100:3101], range(350, 3351))) < 100
    assert places[3101:] == [3350 + 7 * (n // 2) + 4 * (n % 2) for n in range(1, 101)]


class CountingTokenizer:
    def __init__(self, tokenizer):
        self._tokenizer, self.num_decoded = tokenizer, 0

    def decode(self, ids):
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids)

    def batch_decode(self, sequences):
        return [self.decode(ids) for ids in sequences]


@pytest.mark.parametrize("kind", ["ordinary", "noise"])
def test_the_work_is_linear_in_the_length(kind, tokenizer, tmp_path):
    """Tokens decoded are counted: a clock would measure the machine."""

    def work(length: int) -> int:
        rng = np.random.default_rng(3)
        counting = CountingTokenizer(tokenizer)
        noise = rng.integers(len(tokenizer), size=length).tolist()
        ids = noise if kind == "noise" else [rng.integers(12) for _ in range(length)]
        # Every other token is a pivot.
        mass = np.arange(length) % 4 / 3
        empty = np.zeros(length)
        trace = ResponseTrace(long_range_mass=mass, waad=empty, entropy=empty, log_prob=empty)
        write_attempts(tmp_path / "attempts.parquet", ["a"], [Rollout([], ids)], [trace], 0.5, counting)
        return counting.num_decoded

    short, long = work(2000), work(8000)
    assert long < 4.5 * short and long < 8000 * 260


def test_the_table_holds_text_and_spans(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    # Attention jumps while token 40 is written, and while token 50 is.
    mass = np.where((np.arange(len(ids)) > 40) & (np.arange(len(ids)) <= 50), 1.0, 0.0)
    empty = np.zeros(len(ids))
    trace = ResponseTrace(long_range_mass=mass, waad=empty, entropy=empty, log_prob=empty)
    none = ResponseTrace(long_range_mass=empty[:0], waad=empty[:0], entropy=empty[:0], log_prob=empty[:0])
    path = tmp_path / "attempts.parquet"
    write_attempts(path, ["a", "b"], [Rollout([], ids), Rollout([], [])], [trace, none], 0.5, tokenizer)
    places = places_the_long_way(tokenizer, ids)[1]
    assert pq.read_table(path).to_pydict() == {
        "prompt_id": ["a", "b"],
        "text": [TEXT, ""],
        "pivot_start": [[places[40], places[50]], []],
        "pivot_end": [[places[41], places[51]], []],
    }
