"""The demo's pool and model, and the demo itself for a few steps."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivottrace_trl.cli import main
from pivottrace_trl.demo import run, trainer
from pivottrace_trl.demo.arithmetic import has_carry, make_pool, num_terms, work_out
from pivottrace_trl.demo.arm import MODEL_PATH, Arm, Size, first_step_at
from pivottrace_trl.demo.train_model import pass_rates, save, train
from pivottrace_trl.files import PRIVATE_FOLDER


SMALL = Size(pool=48, held_out=8, eval_samples=2, eval_every=2)


def test_worked_solutions_are_right():
    assert work_out("17+5-8=?") == (r"17+5=22;22-8=14;\boxed{14}", "14")
    for problem in make_pool(200, seed=3)["prompt"]:
        text = problem[0]["content"]
        chain, answer = work_out(text)
        assert int(answer) == eval(text.removesuffix("=?")) >= 0
        assert chain.endswith(rf"\boxed{{{answer}}}") and chain.count(";") == num_terms(text) - 1
    with pytest.raises(ValueError, match="'2\\*3=\\?' is not a problem"):
        work_out("2*3=?")


def test_mistakes_are_forgotten_carries():
    import numpy as np

    assert work_out("17+5=?", np.random.default_rng(0), carelessness=1.0)[1] == "12"
    assert work_out("32-5=?", np.random.default_rng(0), carelessness=1.0)[1] == "37"
    assert work_out("12+5-3=?", np.random.default_rng(0), carelessness=1.0)[1] == "14"
    # Later steps go on from the wrong sum.
    assert work_out("17+5+1=?", np.random.default_rng(0), carelessness=1.0)[0] == r"17+5=12;12+1=13;\boxed{13}"


def test_pools_are_reproducible_distinct_and_disjoint():
    pool = make_pool(256, seed=0)
    assert pool.column_names == ["prompt", "solution"]
    assert make_pool(256, seed=0)["prompt"] == pool["prompt"] != make_pool(256, seed=1)["prompt"]
    problems = {prompt[0]["content"] for prompt in pool["prompt"]}
    held_out = {prompt[0]["content"] for prompt in make_pool(128, seed=1, exclude=pool)["prompt"]}
    assert len(problems) == 256 and len(held_out) == 128 and not problems & held_out
    assert {num_terms(problem) for problem in problems} == set(range(2, 9))


def test_a_pool_may_hold_more_that_is_mastered():
    texts = [prompt[0]["content"] for prompt in make_pool(256, seed=0, easy_ratio=0.7)["prompt"]]
    is_easy = [num_terms(text) == 2 and not has_carry(text) for text in texts]
    assert len(set(texts)) == 256 and 0.65 < sum(is_easy) / 256 < 0.85
    assert has_carry("17+5=?") and has_carry("32-5=?") and not has_carry("12+5-3=?")


def test_the_embedded_model_masters_some_problems_and_not_others():
    assert sum(file.stat().st_size for file in MODEL_PATH.iterdir()) < 4_000_000
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    torch.manual_seed(0)
    easy, hard = (pass_rates(model, tokenizer, level, num_problems=24).mean() for level in (2, 8))
    assert easy > 0.7 and hard < 0.5


def test_the_training_script_runs_and_is_reproducible(tmp_path):
    (first, tokenizer), (second, _) = train(3), train(3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    save(first, tokenizer, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == first.num_parameters()
    text = r"<user>17+5=?<assistant>17+5=22;\boxed{22}<eos>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_first_step_at():
    arm = Arm("a", steps=[0, 5, 10], accuracies=[0.2, 0.5, 0.4])
    assert (first_step_at(arm, 0.4), first_step_at(arm, 0.6)) == (5, None)


def test_an_arm_takes_one_thread(tmp_path, monkeypatch):
    seen = []

    def make_trainer(*arguments):
        seen.append(torch.get_num_threads())
        raise InterruptedError

    monkeypatch.setattr(trainer, "make_trainer", make_trainer)
    torch.set_num_threads(2)
    try:
        with pytest.raises(InterruptedError):
            trainer.run_arm("PivotTrace", tmp_path, 0, SMALL, print)
    finally:
        torch.set_num_threads(1)
    assert seen == [1]


def test_the_demo_imports_no_torch_beside_its_arms():
    command = "import sys, pivottrace_trl.demo.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_an_arm_that_fails_ends_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SIZE", SMALL)
    folder = tmp_path / "pivottrace" / PRIVATE_FOLDER
    folder.parent.mkdir()
    folder.write_text("in the way")
    assert main(["demo", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "PivotTrace failed: " in said and str(folder.parent / "log.txt") in said
    assert "Traceback" in (folder.parent / "log.txt").read_text()
    assert not multiprocessing.active_children()


def test_a_demo_that_is_interrupted_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "pivottrace_trl", "demo", "--output", str(tmp_path)]
    demo = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A shell lets what it starts in the background ignore interrupts, and so everything that this starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        logs = [tmp_path / name / "log.txt" for name in ("full-supervision", "pivottrace")]
        while not all(log.is_file() for log in logs):
            assert demo.poll() is None
            time.sleep(0.1)
        children = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) != 0 and len(children) >= 2
        assert not psutil.wait_procs(children, timeout=10)[1]
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)


def test_the_demo_runs_both_arms(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SIZE", SMALL)
    assert main(["demo", "--output", str(tmp_path), "--max-steps", "3", "--seed", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    full, pivot = results["arms"]
    assert full["steps"] == pivot["steps"] == [0, 2, 3]
    # Both arms begin with the same policy, asked the same way.
    assert full["accuracies"][0] == pivot["accuracies"][0]
    assert full["labels"] == 48 and 0 < pivot["labels"] <= 14
    assert pivot["rollout_tokens"][0] > full["rollout_tokens"][0] == 0
    assert (tmp_path / "learning_curves.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "PivotTrace" in printed and "one seed proves little" in printed
