"""The evaluation script: its figures against hand-made responses, and going on after an interruption."""

import json
import runpy
import statistics
from pathlib import Path

import pytest
from peft import get_peft_model

from pivottrace_trl import tracing

from .conftest import LORA, make_model


SCRIPT = str(Path(__file__).parent.parent / "examples" / "evaluate_math.py")
GSM8K = [{"question": f"{n}+{n}=?", "answer": f"easy #### {2 * n}"} for n in range(10, 13)]
OLYMPIAD = [{"question": "x*x=9", "final_answer": ["3"]}, {"question": "Find a, b", "final_answer": ["1", "-2"]}]


@pytest.fixture
def generated(monkeypatch):
    """The batches of prompts that any call of this test generates for."""
    batches = []
    make = tracing.transformers_generator

    def make_counted(model, tokenizer, config):
        generate = make(model, tokenizer, config)

        def counted(prompts):
            batches.append(prompts)
            return generate(prompts)

        return counted

    monkeypatch.setattr(tracing, "transformers_generator", make_counted)
    return batches


@pytest.fixture
def evaluate(tokenizer, tmp_path, monkeypatch):
    """Run the script on two benchmarks in local files; returns its results."""
    model = make_model("llama")
    # Whatever the model's own configuration asks for must not get into the samples.
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("gsm8k", GSM8K), ("olympiadbench", OLYMPIAD)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(output, *options, benchmarks=("gsm8k", "olympiadbench")):
        arguments = ["--model", tmp_path / "model", "--output", tmp_path / output, "--benchmarks", *benchmarks]
        arguments += ["--data", *(f"{name}={tmp_path / name}.jsonl" for name in benchmarks)]
        arguments += ["--batch-size", 4, "--max-completion-length", 8, *options]
        monkeypatch.setattr("sys.argv", ["evaluate_math.py", *map(str, arguments)])
        runpy.run_path(SCRIPT, run_name="__main__")
        return json.loads((tmp_path / output / "results.json").read_text())

    return run


@pytest.fixture
def no_verification(monkeypatch):
    monkeypatch.setattr("pivottrace_trl.answers.metric.AnswerReader.is_correct", lambda self, response, label: False)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(path: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(path)]


def test_benchmarks_are_sampled_as_published():
    benchmarks = runpy.run_path(SCRIPT)["BENCHMARKS"]
    assert {name: benchmark.samples for name, benchmark in benchmarks.items()} == {
        **dict.fromkeys(("aime24", "aime25", "amc23"), 32),
        **dict.fromkeys(("math500", "minerva", "olympiadbench", "gsm8k"), 4),
    }


def test_figures_of_known_responses(evaluate, monkeypatch, capfd):
    known = {
        "10+10": ["it is 20", r"\boxed{20}"],
        "11+11": [r"\boxed{22}", "it is 2"],  # the second one is cut off
        "12+12": ["no idea", "25"],
        "x*x=9": [r"\boxed{3}", "3"],
        "Find a, b": [r"\boxed{1, -2}", r"these: $\boxed{1, -2}$"],  # both values are asked for
    }
    num_tokens = [len(text) + (text != "it is 2") for texts in known.values() for text in texts]

    def make_known(model, tokenizer, config):
        def generate(prompts):
            texts = [tokenizer.decode(prompt) for prompt in prompts]
            responses = [next(known[key] for key in known if key in text).pop(0) for text in texts]
            ends = [[] if response == "it is 2" else config.eos_token_id for response in responses]
            return [tokenizer(response)["input_ids"] + end for response, end in zip(responses, ends, strict=True)]

        return generate

    monkeypatch.setattr(tracing, "transformers_generator", make_known)
    results = evaluate("run", "--samples", 2)
    gsm8k, olympiad = results["gsm8k"], results["olympiadbench"]
    assert gsm8k["accuracy"] == pytest.approx(0.5) and olympiad["accuracy"] == 1.0
    assert gsm8k["standard_error"] == pytest.approx(statistics.stdev([1.0, 0.5, 0.0]) / 3**0.5)
    assert gsm8k["cut_off_ratio"] == pytest.approx(1 / 6) and olympiad["cut_off_ratio"] == 0.0
    assert gsm8k["mean_response_tokens"] == pytest.approx(statistics.fmean(num_tokens[:6]))
    assert gsm8k["samples"] == 2 and gsm8k["num_problems"] == 3 and gsm8k["device"] == "cpu"
    assert "evaluate_math.py --model" in gsm8k["command"] and gsm8k["versions"]["trl"]
    assert "50.0% ± 28.9%" in capfd.readouterr().out


def test_both_benchmarks_with_a_real_model(evaluate, tmp_path, generated):
    results = evaluate("run")
    assert {name: (result["samples"], result["num_problems"]) for name, result in results.items()} == {
        "gsm8k": (4, 3),
        "olympiadbench": (4, 2),
    }
    for name, result in results.items():
        header, *responses = lines(tmp_path / "run" / f"{name}.responses.jsonl")
        assert header["temperature"] == 1.0 and len(responses) == result["samples"] * result["num_problems"]
        assert result["mean_response_tokens"] == statistics.fmean(line["num_tokens"] for line in responses) <= 8
        assert result["cut_off_ratio"] == statistics.fmean(line["is_cut_off"] for line in responses)
        assert len({line["text"] for line in responses}) > 4  # the samples of a problem differ
    # The same command again generates nothing, and a benchmark of its own leaves the other one's results.
    count = len(generated)
    assert evaluate("run", benchmarks=["gsm8k"])["olympiadbench"] == results["olympiadbench"]
    assert len(generated) == count == 5


@pytest.mark.usefixtures("no_verification")
def test_greedy(evaluate, tokenizer, tmp_path, generated, capsys):
    result = evaluate("run", "--temperature", 0, "--limit", 2, benchmarks=["gsm8k"])["gsm8k"]
    assert result["samples"] == 1 and result["num_problems"] == 2 and sum(map(len, generated)) == 2
    # Nothing but the most likely tokens, although the model comes with a penalty on repetitions.
    model = make_model("llama")
    model.generation_config.update(max_new_tokens=8, do_sample=False)
    ids = tracing.transformers_generator(model, tokenizer, model.generation_config)(generated[0])
    texts = [line["text"] for line in lines(tmp_path / "run" / "gsm8k.responses.jsonl")[1:]]
    assert texts == tokenizer.batch_decode(ids, skip_special_tokens=True)
    with pytest.raises(SystemExit):
        evaluate("other", "--temperature", 0, "--samples", 2)
    assert "all samples are the same" in capsys.readouterr().err


@pytest.mark.usefixtures("no_verification")
def test_an_interrupted_run_goes_on_where_it_stopped(evaluate, tmp_path, generated, monkeypatch):
    evaluate("undisturbed", benchmarks=["gsm8k"])
    undisturbed = without_seconds(tmp_path / "undisturbed" / "gsm8k.responses.jsonl")
    path = tmp_path / "run" / "gsm8k.responses.jsonl"
    generated.clear()
    make = tracing.transformers_generator

    def fail_at_the_third(model, tokenizer, config):
        generate = make(model, tokenizer, config)

        def failing(prompts):
            if len(generated) == 2:
                raise KeyboardInterrupt
            return generate(prompts)

        return failing

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracing, "transformers_generator", fail_at_the_third)
        evaluate("run", benchmarks=["gsm8k"])
    assert len(lines(path)) == 1 + 8
    evaluate("run", benchmarks=["gsm8k"])
    assert without_seconds(path) == undisturbed
    assert list(map(len, generated)) == [4, 4, 4]

    # The machine goes down while the seventh response is written.
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:7]) + content[7][:-5])
    generated.clear()
    evaluate("run", benchmarks=["gsm8k"])
    assert list(map(len, generated)) == [4, 2]
    resumed = without_seconds(path)
    assert resumed[:7] == undisturbed[:7]
    assert sorted((line["problem"], line["sample"]) for line in resumed[1:]) == [
        (problem, sample) for problem in range(3) for sample in range(4)
    ]
    # The new samples are not the old ones once more.
    assert all(len({line["text"] for line in resumed[1:] if line["problem"] == problem}) == 4 for problem in range(3))


@pytest.mark.usefixtures("no_verification")
def test_other_settings_are_refused(evaluate, tmp_path, generated):
    evaluate("run", benchmarks=["gsm8k"])
    count = len(generated)
    for option, value, setting in (
        ("--temperature", 0.5, r"'temperature': \(1.0, 0.5\)"),
        ("--seed", 1, r"'seed': \(0, 1\)"),
        ("--samples", 2, r"'samples': \(4, 2\)"),
        ("--limit", 2, r"'num_problems': \(3, 2\)"),
        ("--max-completion-length", 9, r"'max_completion_length': \(8, 9\)"),
        ("--adapter", "lora", r"'adapter': \(None, 'lora'\)"),
    ):
        with pytest.raises(ValueError, match=setting):
            evaluate("run", option, value, benchmarks=["gsm8k"])
    # Problems that were edited in between, too.
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row | {"question": "1+1=?"}) + "\n" for row in GSM8K))
    with pytest.raises(ValueError, match="'prompts': "):
        evaluate("run", benchmarks=["gsm8k"])
    assert len(generated) == count


@pytest.mark.usefixtures("no_verification")
def test_adapter(evaluate, tmp_path):
    get_peft_model(make_model("llama"), LORA).save_pretrained(tmp_path / "lora")
    evaluate("plain", "--temperature", 0, benchmarks=["gsm8k"])
    result = evaluate("adapted", "--temperature", 0, "--adapter", tmp_path / "lora", benchmarks=["gsm8k"])["gsm8k"]
    assert result["adapter"] == str(tmp_path / "lora")
    plain, adapted = (lines(tmp_path / name / "gsm8k.responses.jsonl")[1:] for name in ("plain", "adapted"))
    assert [line["text"] for line in plain] != [line["text"] for line in adapted]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "gsm9k=a.jsonl"], "--data names 'gsm9k'"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--batch-size", "0"], "0 is less than 1"),
        (["--benchmarks", "math"], "invalid choice: 'math'"),
    ],
)
def test_arguments_that_make_no_sense(evaluate, capsys, options, message):
    with pytest.raises(SystemExit):
        evaluate("run", *options)
    assert message in capsys.readouterr().err


def test_missing_column(evaluate, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"problem": "1+1=?", "answer": "2"}\n')
    with pytest.raises(ValueError, match=r"no column `question`, only \['problem', 'answer'\]"):
        evaluate("run", benchmarks=["gsm8k"])
