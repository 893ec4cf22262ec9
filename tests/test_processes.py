"""Two processes against one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from pivottrace_trl import PivotDensityCallback
from pivottrace_trl.processes import Processes
from pivottrace_trl.training.parallelism import fingerprint_weights, whole_model

from . import many_processes
from .conftest import make_model


@pytest.fixture(scope="module")
def folder(tokenizer_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(tokenizer_path, folder / "tokenizer")
    # What `accelerate launch` starts where there are GPUs; on a CPU it would ask for MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(many_processes.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    outcome = subprocess.run(
        [*launch, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield many_processes.run(folder / "alone", folder / "tokenizer")
    torch.set_num_threads(threads)


def test_every_rank_has_the_routes_of_one_process(ranks, alone):
    first, second = (rank["whole"] for rank in ranks)
    assert first["routes"] == second["routes"] == alone["routes"]
    assert len(set(first["routes"])) > 1
    assert first["scores"] == second["scores"]
    assert np.allclose(first["scores"], alone["scores"], rtol=1e-3)
    assert first["annotated"] == second["annotated"] == alone["annotated"] > 0
    assert first["weights"] == second["weights"] == pytest.approx(alone["weights"], rel=1e-4)


def test_together_the_ranks_train_on_the_batches_of_one_process(ranks, alone):
    batches = zip(*(rank["whole"]["batches"] for rank in ranks), strict=True)
    assert [first + second for first, second in batches] == alone["batches"]
    assert len(set(map(tuple, alone["batches"]))) > 10


def test_groups_that_straddle_two_ranks_vote_together(ranks, alone):
    first, second = (rank["whole"] for rank in ranks)
    straddling = [(one[-1], other[0]) for one, other in zip(first["batches"], second["batches"], strict=True)]
    assert straddling and all(one == other for one, other in straddling)
    # Every completion is judged by the label that it has where one process holds the whole group.
    assert sorted(map(tuple, first["judged"] + second["judged"])) == sorted(alone["judged"])
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"])


def test_the_completions_table_tells_the_same_of_each_row(ranks, folder, alone):
    for table, same in (("whole", alone["table"]), ("after", None)):
        rows = ranks[0][table]["table"]
        assert len(rows) > 100 and {row["label_source"] for row in rows} >= {"bought", "vote"}
        assert same is None or sorted(rows, key=json.dumps) == sorted(same, key=json.dumps)


def test_what_rank_0_buys_after_the_rollouts_counts_in_every_process(ranks, folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = many_processes.run(folder / "alone-after", folder / "tokenizer", buy="after", epochs=2)
    torch.set_num_threads(threads)
    first, second = (rank["after"] for rank in ranks)
    assert first["labelled"] == second["labelled"] == alone["labelled"]
    assert first["routes"] == second["routes"] == alone["routes"]
    # Six are probes: the others were bought in training, by one process, and shown in both.
    assert sum(alone["labelled"]) > 6 and not second["opened"]
    assert sorted(map(tuple, first["judged"] + second["judged"])) == sorted(alone["judged"])
    assert first["weights"] == second["weights"] == pytest.approx(alone["weights"], rel=1e-4)


def test_the_pool_is_scored_in_shares(ranks, alone):
    in_scoring = [[size for size in seen["generated"] if size != many_processes.BATCH] for seen in (alone,)]
    shares = [rank["whole"]["generated"][:1] for rank in ranks]
    assert sum(in_scoring[0][:2]) == many_processes.NUM_PROMPTS
    assert shares == [[15], [15]]  # two batches of fifteen, one for each


def test_only_rank_0_opens_the_ledger(ranks):
    assert ranks[0]["whole"]["opened"] and not ranks[1]["whole"]["opened"]


def test_a_resumed_run_goes_on_in_both_processes(ranks):
    if "resumed" not in ranks[0]:
        pytest.skip("this transformers cannot load an optimizer in several CPU processes")
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert resumed["batches"] == whole["batches"][-len(resumed["batches"]) :]
        assert 0 < len(resumed["batches"]) < len(whole["batches"])
        assert resumed["routes"] == whole["routes"] and resumed["scores"] == whole["scores"]
        assert resumed["annotated"] == whole["annotated"]
        assert resumed["weights"] == whole["weights"]


def test_a_failure_on_rank_0_reaches_the_other(ranks):
    assert "line is dead" in ranks[0]["failure"]
    assert "Rank 0 failed" in ranks[1]["failure"] and "line is dead" in ranks[1]["failure"]


def test_hooks_read_the_attention_of_a_model_whose_weights_are_spread(ranks):
    for rank in ranks:
        traces = rank["traces"]
        assert len(traces["whole"]) > 100 and traces["whole heads"] == traces["sharded heads"]
        assert np.allclose(traces["whole"], traces["sharded"], rtol=1e-4, atol=1e-5)


class Spread:
    """Stands in for what accelerate says of a launch."""

    def __init__(self, trainer, plugin=None, **parallelism):
        self.state, self.parallelism_config = SimpleNamespace(**(plugin or {})), None
        if parallelism:
            enabled = {"tp_enabled": False, "cp_enabled": False, "sp_enabled": False}
            self.parallelism_config = SimpleNamespace(**{**enabled, **parallelism})
        self._accelerator = trainer.accelerator

    def __getattr__(self, name):
        return getattr(self._accelerator, name)


@pytest.mark.parametrize(
    ("spread", "match"),
    [
        ({"plugin": {"deepspeed_plugin": SimpleNamespace(zero_stage=3)}}, "ZeRO-3 is not supported.*zero_stage: 2"),
        ({"plugin": {"fsdp_plugin": SimpleNamespace(fsdp_version=1)}}, "FSDP 1 is not supported.*fsdp_version: 2"),
        ({"tp_enabled": True}, "Tensor, context and sequence parallelism are not supported.*DDP"),
        ({"cp_enabled": True}, "Tensor, context and sequence parallelism are not supported.*DDP"),
        ({"plugin": {"deepspeed_plugin": SimpleNamespace(zero_stage=2)}}, None),
        ({"plugin": {"fsdp_plugin": SimpleNamespace(fsdp_version=2)}}, None),
    ],
)
def test_what_cannot_be_traced_is_refused(spread, match, make_trainer):
    trainer = make_trainer()
    trainer.accelerator = Spread(trainer, **spread)
    if match is None:
        PivotDensityCallback(trainer, 0.5).detach()
    else:
        with pytest.raises(NotImplementedError, match=match):
            PivotDensityCallback(trainer, 0.5)


def test_processes_with_other_weights_are_noticed(make_trainer):
    class Two(Processes):
        def gather(self, value):
            return [value, fingerprint_weights(make_model("qwen2"))]

    with pytest.raises(RuntimeError, match="hold different weights.*fsdp_cpu_ram_efficient_loading: false"):
        with whole_model(make_trainer(), Two()):
            pass


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "examples" / "accelerate").glob("*.yaml")))
def test_launch_files_are_what_accelerate_reads(path, make_trainer):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.distributed_type in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    fsdp, deepspeed = config.fsdp_config or {}, config.deepspeed_config or {}
    plugin = {}
    if fsdp:
        assert fsdp["fsdp_cpu_ram_efficient_loading"] is False
        plugin["fsdp_plugin"] = SimpleNamespace(fsdp_version=fsdp["fsdp_version"])
    if deepspeed:
        plugin["deepspeed_plugin"] = SimpleNamespace(zero_stage=deepspeed["zero_stage"])
    trainer = make_trainer()
    trainer.accelerator = Spread(trainer, plugin)
    PivotDensityCallback(trainer, 0.5).detach()
