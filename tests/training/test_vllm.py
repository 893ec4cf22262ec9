"""
vLLM where there is none: a server that speaks vLLM's HTTP protocol, and an engine in the process. What both generate
is drawn uniformly from the vocabulary, so that no number of theirs can pass for one of the training model.
"""

import json
import math
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GenerationMixin
from trl.generation import vllm_client, vllm_generation

from pivottrace_trl import Rollout, trace_rollouts
from pivottrace_trl.estimators import PivotDensity, TotalEntropy

from ..conftest import CHARACTERS, SPECIAL, attach


EOS_ID = SPECIAL.index("<eos>")
TOKEN_IDS = list(range(len(SPECIAL), len(SPECIAL) + len(CHARACTERS)))
LOG_PROB = -math.log(len(TOKEN_IDS))


class UniformEngine:
    """
    Generates texts and takes weights, as vLLM does, and notes what it was asked for.

    Attributes:
        requests (`list[list[Rollout]]`): what was generated, request by request.
        synced (`list[set[str]]`): names of the weights that each synchronisation brought.
        syncs_before (`list[int]`): number of synchronisations before each request.
    """

    def __init__(self):
        self._random = random.Random(3)
        self._busy = threading.Lock()
        self.requests: list[list[Rollout]] = []
        self.synced: list[set[str]] = []
        self.syncs_before: list[int] = []

    def generate(self, prompts: list[list[int]], n: int, max_tokens: int) -> list[Rollout]:
        """`n` completions a prompt, those of a prompt beside each other."""
        assert self._busy.acquire(blocking=False), "a request came before the last one was answered"
        self.syncs_before.append(len(self.synced))
        rollouts = [Rollout(list(prompt), self._complete(max_tokens)) for prompt in prompts for _ in range(n)]
        self.requests.append(rollouts)
        self._busy.release()
        return rollouts

    def _complete(self, max_tokens: int) -> list[int]:
        length = self._random.randint(max_tokens // 2, max_tokens)
        return [*self._random.choices(TOKEN_IDS, k=length - 1), EOS_ID]


class Handler(BaseHTTPRequestHandler):
    """The part of `vllm serve` that TRL's client talks to."""

    engine: UniformEngine

    def do_GET(self):
        answers = {
            "/health": {},
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}},
        }
        self._answer(answers.get(self.path.partition("?")[0]))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path == "/reset_prefix_cache":
            self._answer({"success": True})
        elif self.path == "/v1/completions":
            rollouts = self.engine.generate(body["prompt"], body["n"], body["max_tokens"])
            self._answer({"choices": [_choice(rollout) for rollout in rollouts]})
        else:
            self._answer(None)

    def _answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def _choice(rollout: Rollout) -> dict:
    tokens = [f"token_id:{token}" for token in rollout.completion_ids]
    log_probs = [LOG_PROB] * len(tokens)
    top = [{token: LOG_PROB} for token in tokens]
    return {
        "prompt_token_ids": rollout.prompt_ids,
        "token_ids": rollout.completion_ids,
        "logprobs": {"tokens": tokens, "token_logprobs": log_probs, "top_logprobs": top},
    }


class FakeLLM:
    """Stands for `vllm.LLM`, with the weights of an engine that sleeps if it is told to."""

    engine: UniformEngine

    def __init__(self, enable_sleep_mode: bool, **settings):
        self._has_weights = not enable_sleep_mode
        model = SimpleNamespace(load_weights=self._load_weights)
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self._received: set[str] = set()

    def _load_weights(self, weights):
        self._received.update(name for name, _ in weights)

    def reset_prefix_cache(self):
        self.engine.synced.append(self._received)
        self._received, self._has_weights = set(), True

    def wake_up(self, tags):
        pass

    def sleep(self, level):
        self._has_weights = False

    def generate(self, prompts, sampling_params, use_tqdm):
        assert self._has_weights, "generation without weights"
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        return [
            SimpleNamespace(
                prompt_token_ids=rollout.prompt_ids,
                outputs=[
                    SimpleNamespace(
                        token_ids=rollout.completion_ids,
                        logprobs=[{i: SimpleNamespace(logprob=LOG_PROB, rank=1)} for i in rollout.completion_ids],
                    )
                ],
            )
            for rollout in self.engine.generate(ids, sampling_params.n, sampling_params.max_tokens)
        ]


@pytest.fixture
def engine(monkeypatch):
    """An engine, with TRL persuaded that vLLM is installed."""
    engine = UniformEngine()
    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(vllm_generation, "LLM", type("LLM", (FakeLLM,), {"engine": engine}), raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)

    # Weights travel from GPU to GPU past the HTTP protocol, which is left out here.
    def take_weights(client, metadata, named_params):
        names = {name for name, _ in named_params}
        assert names == {name for name, _, _ in metadata}
        engine.synced.append(names)

    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda client, device: None)
    monkeypatch.setattr(vllm_client.VLLMClient, "update_named_params", take_weights)

    def generate(*args, **kwargs):
        raise AssertionError("the training model generated")

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        # TRL sets them for vLLM: what is set and deleted here is put back after the test.
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    return engine


@pytest.fixture
def server(engine):
    """Address of a server with the engine behind it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("EngineHandler", (Handler,), {"engine": engine}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("mode", ["server", "colocate", pytest.param("colocate asleep", marks=pytest.mark.slow)])
def test_vllm_generates_and_the_training_model_scores(mode, engine, server, make_trainer, tmp_path):
    options = {"vllm_mode": mode.split()[0], "vllm_enable_sleep_mode": mode.endswith("asleep")}
    if mode == "server":
        options["vllm_server_base_url"] = server
    trainer = make_trainer(use_vllm=True, num_train_epochs=2, max_completion_length=48, **options)
    callback = attach(trainer)
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    summary = callback.summary()

    # The pool was answered first: every prompt once, in one request, with the weights of the training model.
    answered = {tuple(rollout.prompt_ids): rollout for rollout in engine.requests[0]}
    prompts = [tuple(ids) for ids in trainer._tokenize_prompts(list(trainer.train_dataset["prompt"]))[0]]
    assert sorted(answered) == sorted(prompts)
    assert engine.syncs_before[0] == 1
    assert engine.synced[0] and not [name for name in engine.synced[0] if "lora" in name]
    # After that, groups of training: as many syncs as steps that generated with new weights, at least.
    assert all(len(request) == trainer.args.generation_batch_size for request in engine.requests[1:])
    assert len(engine.synced) > len(engine.requests) - 2 > 1

    # Scores are those of the training model on these very tokens.
    first, second = (
        pq.read_table(tmp_path / "run" / "_pivottrace" / f"routes-epoch-{epoch:03d}.parquet").to_pydict()
        for epoch in range(2)
    )
    callback.detach()
    trainer.model.load_state_dict(weights)
    model = trainer.accelerator.unwrap_model(trainer.model)
    traces, _ = trace_rollouts(model, [answered[prompt] for prompt in prompts], 0, progress=False)
    assert first["score"] == pytest.approx(list(TotalEntropy()(traces)), rel=1e-4)
    np.testing.assert_allclose(first["pivot_density"], PivotDensity().fit(traces)(traces), atol=1e-4)
    # What the engine itself said of its tokens is another matter.
    assert not np.allclose(torch.cat([torch.as_tensor(trace.log_prob) for trace in traces]), LOG_PROB, atol=0.1)

    assert summary["num_routings"] == 2
    assert 0 < summary["annotated"] <= 16
    trained = {tuple(rollout.prompt_ids) for request in engine.requests[1:] for rollout in request}
    is_trained = np.array([prompt in trained for prompt in prompts])
    has_new_score = np.array(first["score"]) != np.array(second["score"])
    assert has_new_score.any() and not has_new_score[~is_trained].any()
    assert any("sampling/importance_sampling_ratio/mean" in entry for entry in trainer.state.log_history)
