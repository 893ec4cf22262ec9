"""`pivottrace train`: the run of the two-line script, from YAML and flags, and refusals that say what to do."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset
from peft import LoraConfig
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer, TrlParser
from trl.scripts import grpo

from pivottrace_trl import EndpointAnnotator, PivotDensityCallback, PivotTraceConfig, TriageConfig
from pivottrace_trl.cli import config, main, train

from .conftest import TRAINING, digit_reward, make_model, make_pool


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trl_cli.md").read_text()
SETTINGS = {
    **TRAINING,
    "output_dir": "run",
    "model_name_or_path": "model",
    "datasets": [{"path": "json", "data_files": "pool.jsonl"}],
    "reward_funcs": ["tests.conftest.digit_reward"],
    "use_peft": True,
    "lora_r": 4,
    "lora_target_modules": ["q_proj", "v_proj"],
    "annotation_budget": 0.5,
    "answer_format": "tests.conftest:FIRST_DIGIT",
}


@pytest.fixture(autouse=True)
def folder(tokenizer_path, tmp_path, monkeypatch):
    """A folder with a model, a pool and `grpo.yaml`, in a process that accelerate started."""
    shutil.copytree(tokenizer_path, tmp_path / "model")
    make_model("llama").save_pretrained(tmp_path / "model")
    make_pool(16).to_json(tmp_path / "pool.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return tmp_path


def write(**changes) -> None:
    settings = {name: value for name, value in {**SETTINGS, **changes}.items() if value is not MISSING}
    Path("grpo.yaml").write_text(yaml.safe_dump(settings))


def run(*flags: str) -> None:
    assert main(["train", "--config", "grpo.yaml", *flags]) == 0


@pytest.fixture
def refusal(capsys):
    """The one line that the command says of settings that it refuses."""

    def refuse(*flags: str, file: str | None = None) -> str:
        if file is not None:
            Path("grpo.yaml").write_text(file)
        assert main(["train", "--config", "grpo.yaml", *flags]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pivottrace train:")]
        return line

    return refuse


def test_it_is_the_run_of_the_two_line_script():
    write(annotation_budget=0.9, tau_high=0.9)
    run("--annotation_budget", "50%")
    dataset = load_dataset("json", data_files="pool.jsonl", split="train")
    lora = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    trainer = GRPOTrainer(
        model="model",
        reward_funcs=digit_reward,
        args=GRPOConfig(**{**TRAINING, "output_dir": "script"}),
        train_dataset=dataset,
        peft_config=lora,
    )
    settings = {"answer_format": "tests.conftest:FIRST_DIGIT", "config": TriageConfig(tau_high=0.9)}
    trainer.add_callback(PivotDensityCallback(trainer, annotation_budget=0.5, **settings))
    trainer.train()
    trainer.save_model("script")
    ours, scripts = (load_file(f"{name}/adapter_model.safetensors") for name in ("run", "script"))
    assert ours.keys() == scripts.keys() and all(ours[name].equal(scripts[name]) for name in ours)
    assert any(weights.abs().sum() > 0 for name, weights in ours.items() if "lora_B" in name)
    summaries = [json.loads(Path(name, "_pivottrace", "summary.json").read_text()) for name in ("run", "script")]
    assert summaries[0] == summaries[1] and summaries[0]["annotation_budget"] == 8
    assert json.loads(Path("run", "_pivottrace", "run.json").read_text())["settings"]["tau_high"] == 0.9


def test_it_goes_on_from_a_checkpoint():
    write(max_steps=2, save_strategy="steps", save_steps=1)
    run()
    whole = load_file("run/adapter_model.safetensors")
    shutil.rmtree("run/checkpoint-2")
    write(max_steps=2, save_strategy="steps", save_steps=1, resume_from_checkpoint=True)
    run()
    resumed = load_file("run/adapter_model.safetensors")
    assert Path("run/checkpoint-2").is_dir() and all(whole[name].equal(resumed[name]) for name in whole)


def test_a_folder_with_splits_is_evaluated_on_and_the_model_uploaded(monkeypatch, capsys):
    Path("data").mkdir()
    pool = make_pool(24)
    pool.select(range(16)).to_json("data/train.jsonl")
    pool.select(range(16, 24)).to_json("data/test.jsonl")
    uploads = []
    monkeypatch.setattr(GRPOTrainer, "init_hf_repo", lambda self: setattr(self, "hub_model_id", "me/model"))
    monkeypatch.setattr(GRPOTrainer, "push_to_hub", lambda self, **options: uploads.append(options))
    write(datasets=MISSING, dataset_name="data", max_steps=1, eval_strategy="steps", eval_steps=1, push_to_hub=True)
    run()
    assert uploads[-1] == {"dataset_name": "data"}
    assert "It is on the hub: https://huggingface.co/me/model" in capsys.readouterr().out
    record = json.loads(Path("run", "_pivottrace", "run.json").read_text())
    assert "eval_reward" in json.dumps(record)


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"annotation_budgett": 0.3}, [], "`annotation_budgett` is no option of `trl grpo`, of PivotTrace or of `acc"),
        ({"annotation_budgett": 0.3}, [], "Did you mean `annotation_budget`?"),
        ({"label-column": "solution"}, [], "Did you mean `label_column`?"),
        ({"zzz": None}, [], "`zzz` is no option of `trl grpo`"),
        ({}, ["--tau-hihg", "0.9"], "`tau-hihg` is no option"),
        ({}, ["--annotation_budge", "0.9"], "Did you mean `annotation_budget`?"),
        ({}, ["--config"], "`--config` is the last word"),
        ({}, ["other.yaml"], "'other.yaml' belongs to no option. A file of settings is named by `--config`"),
        ({"multi_gpu": True}, [], "'True' belongs to no option."),
        ({}, ["--num_processes", "2"], "['--num_processes', '2'] is for `accelerate launch`, which runs already"),
        ({"model_name_or_path": MISSING}, [], "No model is named. Add `model_name_or_path`"),
        ({"datasets": MISSING}, [], "No dataset is named. Add `dataset_name`"),
        ({"reward_funcs": MISSING}, [], "No reward function is named. Add `reward_funcs`: of ['accuracy_reward'"),
        ({"reward_funcs": ["accuracy"]}, [], "`reward_funcs` names 'accuracy', which cannot be imported"),
        ({"reward_funcs": ["tests.conftest.none"]}, [], "`reward_funcs` names 'tests.conftest.none'"),
        ({"eval_strategy": "epoch"}, [], "`dataset_test_split` is 'test', but the dataset has ['train']"),
        ({"streaming": True}, [], "`dataset_streaming` and `streaming` leave no pool"),
        ({"annotator": "people"}, [], "`annotator` is 'people', but must be"),
        ({"buy": "later"}, [], "`buy` is 'later'"),
        ({"annotation_budget": None}, [], "`annotation_budget` is None, which is neither a share"),
        ({"annotation_budget": "30 %%"}, [], "`annotation_budget` is '30 %%', which is neither a share"),
        ({"free_columns": "level"}, [], "`free_columns` is 'level', but must be a list"),
        ({"tau_low": 7}, [], "`tau_low` is 7"),
        ({"endpoint": {"base_url": "http://localhost"}}, [], "must be a mapping with a `model`"),
        ({"endpoint": {"model": "m", "api_key": "secret"}}, [], "Its key is read from the environment variable"),
        ({"endpoint": "gpt-5"}, [], "`endpoint` is 'gpt-5', but must be a mapping"),
        ({"num_generations": 3}, [], "num_generations"),
        ({"accelerate_config": "ddp.yaml"}, [], "neither a file nor a valid config"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(changes, flags, message, refusal):
    write(**changes)
    assert message in refusal(*flags)
    assert not Path("run", "_pivottrace").exists()


def test_a_file_that_cannot_be_read_is_refused_in_a_line(refusal):
    assert "No such file or directory: 'grpo.yaml'" in refusal()
    assert "must contain a YAML mapping" in refusal(file="- annotation_budget")
    assert "mapping values are not allowed here" in refusal(file="a: b: c")


def test_a_failing_training_shows_where(monkeypatch):
    def fail(self, resume_from_checkpoint=None):
        raise ValueError("in training")

    write()
    monkeypatch.setattr(GRPOTrainer, "train", fail)
    with pytest.raises(ValueError, match="in training"):
        run()


def test_debug_shows_where_settings_are_refused_and_an_interrupt_is_a_line(monkeypatch, capsys):
    def interrupt(self, resume_from_checkpoint=None):
        raise KeyboardInterrupt

    write()
    with pytest.raises(ValueError, match="`tau_low` is 7"):
        main(["--debug", "train", "--config", "grpo.yaml", "--tau_low", "7"])
    monkeypatch.setattr(GRPOTrainer, "train", interrupt)
    assert main(["train", "--config", "grpo.yaml"]) == 130
    assert "interrupted. What was scored and bought is in `output_dir`" in capsys.readouterr().err


def test_a_file_of_trl_grpo_is_read_whole(launched):
    """What people have in such files: PEFT, quantization, trackers, vLLM, templates, settings of other libraries."""
    write(
        env={"PIVOTTRACE_TEST": 1},
        accelerate_config="multi_gpu",
        num_processes=4,
        dtype="bfloat16",
        attn_implementation="sdpa",
        model_init_kwargs={"low_cpu_mem_usage": True},
        chat_template_kwargs={"enable_thinking": False},
        load_in_4bit=True,
        lora_target_modules="all-linear",
        use_dora=True,
        report_to=["wandb", "trackio"],
        log_completions=True,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.3,
        reward_funcs="accuracy_reward",
        reward_weights=[1.0],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        gradient_checkpointing_kwargs={"use_reentrant": False},
        generation_kwargs={"min_p": 0.1},
        test_split_size=0.1,
        dataset_streaming=False,
        push_to_hub=True,
        hub_model_id="me/model",
    )
    assert main(["train", "--config", "grpo.yaml"]) == 0
    (args,) = launched
    assert (
        args.num_processes == 4
        and Path(args.config_file).stem == "multi_gpu"
        and os.environ.pop("PIVOTTRACE_TEST") == "1"
    )


@pytest.fixture
def launched(monkeypatch):
    """What is given to `accelerate launch`, which starts nothing here."""
    launches = []
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(train, "launch_command", launches.append)
    return launches


def test_started_by_hand_it_starts_itself_through_accelerate(launched):
    write(accelerate_config="zero2")
    assert (
        main(["train", "--num_processes", "2", "--config=grpo.yaml", "--seed", "2", "--mixed_precision", "bf16"]) == 0
    )
    (args,) = launched
    assert (args.num_processes, args.mixed_precision, Path(args.config_file).stem) == (2, "bf16", "zero2")
    assert args.module and args.training_script == "pivottrace_trl"
    assert args.training_script_args == ["train", "--config", "grpo.yaml", "--seed", "2"]


def test_an_unknown_option_is_refused_before_anything_starts(launched, refusal):
    write()
    assert "`anotation_budget` is no option" in refusal("--num_processes", "2", "--anotation_budget", "300")
    write(num_proceses=2)
    assert "`num_proceses` is no option" in refusal()
    write(reward_funcs=MISSING)
    assert "No reward function is named" in refusal("--num_processes", "2")
    assert launched == []


def test_help(capsys):
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    printed = capsys.readouterr().out
    assert done.value.code == 0 and printed.index("\nPivotTrace:\n") > printed.index("--num_generations")
    assert "pivottrace train --config grpo.yaml --annotation_budget 30%\n" in printed
    missing = [part.name for part in fields(PivotTraceConfig) if f"--{part.name} " not in printed]
    assert not missing and not [part.name for part in fields(PivotTraceConfig) if not part.metadata["help"]]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "train as `trl grpo` does" in capsys.readouterr().out


def test_arguments_and_defaults_are_those_of_the_callback():
    parameters = inspect.signature(PivotDensityCallback).parameters
    expected = {name: value.default for name, value in parameters.items() if name not in ("trainer", "config")}
    expected |= {part.name: part.default for part in fields(TriageConfig)} | {"endpoint": None}
    found = {part.name: getattr(PivotTraceConfig(), part.name) for part in fields(PivotTraceConfig)}
    assert found.pop("free_columns") == [*expected.pop("free_columns")]
    assert found == expected and len(found) == 18


def parse(*flags: str, **settings) -> PivotTraceConfig:
    Path("pivottrace.yaml").write_text(yaml.safe_dump(settings))
    (parsed,) = TrlParser(PivotTraceConfig).parse_args_and_config(["--config", "pivottrace.yaml", *flags])
    return parsed


@pytest.fixture
def told(monkeypatch):
    """What the callback of a config is told, without one being made."""
    monkeypatch.setattr(config, "PivotDensityCallback", lambda trainer, **options: options)

    def tell(*flags, **settings):
        return parse(*flags, **settings).make_callback(None)

    return tell


def test_every_argument_reaches_the_callback(told):
    defaults = told()
    assert defaults["config"] == TriageConfig() and defaults["annotator"] is None
    given = {
        "annotation_budget": 300,
        "label_column": "answer",
        "free_columns": ["level", "source"],
        "annotator": "queue",
        "buy": "after",
        "wait_for_annotations": 0.9,
        "estimator": "length",
        "answer_format": "choice:yes,no",
        "success_threshold": 0.1,
        "id_column": "id",
        "question_column": "question",
        "instruction": "Think.",
    }
    triage = {"probe_size": 8, "tau_high": 0.9, "tau_low": 0.4, "min_agreement": 0.6, "discard_ratio": 0.4}
    expected = given | {"config": TriageConfig(**triage, reroutes=False)}
    assert told(**given, **triage, reroutes=False) == expected
    flags = [f"--{name}={value}" for name, value in (given | triage).items() if name != "free_columns"]
    in_flags = told("--free-columns", "level", "source", "--no_reroutes", *flags)
    assert in_flags == expected | {"annotation_budget": "300"}


@pytest.mark.parametrize("text", ["300", "1", "1.0", "0.3", "30%"])
def test_a_budget_in_a_flag_is_taken_as_it_is_written(text, told):
    # Whether `1` is one label or the whole pool is for the callback to tell.
    assert told("--annotation_budget", text)["annotation_budget"] == text


def test_an_endpoint(told, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    settings = {"model": "large", "base_url": "http://localhost:1/v1", "num_samples": 3, "max_cost": 2}
    settings["price_per_million_tokens"] = [1.0, 2.0]
    alone = told(endpoint=settings, answer_format="number")["annotator"]
    assert isinstance(alone, EndpointAnnotator) and alone.author == "large x 3"
    model, people = told("--endpoint", json.dumps(settings), annotator="queue")["annotator"]
    assert isinstance(model, EndpointAnnotator) and people == "queue"


def test_what_trl_grpo_does_is_what_the_twin_was_written_after():
    """Where this fails, TRL changed its script: compare it with `cli/train.py`, and note the new one here."""
    names = re.findall(r'^        "(\w+)": ', inspect.getsource(grpo.main), re.MULTILINE)
    assert names == [*train._REWARDS]
    assert [*inspect.signature(grpo.main).parameters] == ["script_args", "training_args", "model_args", "dataset_args"]


def test_the_page_shows_the_example_and_it_runs():
    text = (ROOT / "examples" / "grpo.yaml").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert text in blocks
    assert all(PivotTraceConfig(**yaml.safe_load(block)) for block in blocks if block != text)
    Path("grpo.yaml").write_text(text)
    tiny = {"model_name_or_path": "model", "max_steps": 1, "max_completion_length": 12, "report_to": "none"}
    tiny |= {"per_device_train_batch_size": 8, "num_generations": 4, "gradient_accumulation_steps": 1}
    run("--use_cpu", "--bf16", "false", *[f"--{name}={value}" for name, value in tiny.items()])
    assert json.loads(Path("run/_pivottrace/summary.json").read_text())["annotation_budget"] == 4


def test_the_snippets_of_the_page_run(monkeypatch):
    making_a_pool, script = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    questions = [{"question": f"{n}+{n % 5}?", "answer": f"easy #### {n + n % 5}"} for n in range(12)]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    namespace: dict = {}
    exec(making_a_pool, namespace)
    assert json.loads(Path("pool.jsonl").read_text().splitlines()[7])["solution"] == "9"
    write(max_steps=1, answer_format="math", datasets=MISSING, reward_funcs=MISSING)
    monkeypatch.setattr("sys.argv", ["script.py", "--config", "grpo.yaml", "--annotation_budget", "25%"])
    exec(script, namespace)
    assert namespace["trainer"].state.global_step == 1
    assert json.loads(Path("run/_pivottrace/summary.json").read_text())["annotation_budget"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_it_runs_as_started_from_a_shell(num_processes, monkeypatch, folder):
    """By itself through accelerate, and by torchrun, as accelerate asks for MPI where two processes share a CPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write(max_steps=2, per_device_train_batch_size=8 // num_processes)
    start = [sys.executable, "-m"]
    if num_processes == 2:
        start += ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [*start, "pivottrace_trl", "train", "--config", "grpo.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The model is in run.") == 1
    assert json.loads(Path("run/_pivottrace/summary.json").read_text())["annotated"] == 8
    refused = subprocess.run([*command, "--buy", "after", "--reward_funcs", "none"], capture_output=True, text=True)
    assert refused.returncode != 0 and "pivottrace train: `reward_funcs` names 'none'" in refused.stderr
    assert num_processes == 2 or "Traceback" not in refused.stderr
