"""An annotator behind an endpoint: a local fake that is slow, overloaded, wordy or rude."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pivottrace_trl import AnnotationLedger, CallableAnnotator, EndpointAnnotator, Query


IDS = [f"p{number}" for number in range(20)]


class Endpoint:
    """Answers `What is n?` with n + 1; `behave` may say otherwise for the number of the request."""

    def __init__(self):
        self.requests, self.times, self.behave = [], [], lambda number, request: None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(request)
                endpoint.times.append(time.monotonic())
                behaviour = endpoint.behave(len(endpoint.requests), request)
                status, text = behaviour or (200, None)
                if text is None:
                    number = int(request["messages"][-1]["content"].split()[-1].strip("?"))
                    text = rf"Let me think. \boxed{{{number + 1}}}"
                body = (
                    {"error": {"message": text}}
                    if status != 200
                    else {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 0,
                        "model": request["model"],
                        "choices": [
                            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                        ],
                        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
                    }
                )
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After", "0.01")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def ledger(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 20, IDS)
    ledger.request([Query(i, f"What is {n}?") for n, i in enumerate(IDS)])
    return ledger


def oracle(annotator):
    def rows(ids):
        return [{"prompt": [{"role": "user", "content": f"What is {int(i[1:])}?"}]} for i in ids]

    return CallableAnnotator(annotator, rows, "solution")


def make(endpoint, **options):
    return EndpointAnnotator("big-model", endpoint.url, "key", **options)


def test_answers_prices_and_author(endpoint, ledger):
    annotator = make(endpoint, price_per_million_tokens=(1.0, 4.0))
    assert ledger.buy(oracle(annotator)) == 20
    assert all(ledger.label(i) == {"solution": str(n + 1)} for n, i in enumerate(IDS))
    assert ledger.author("p3") == "big-model"
    assert annotator.cost == pytest.approx(20 * 300e-6)
    assert sum(event["price"] for event in ledger.events()) == pytest.approx(annotator.cost)
    assert endpoint.requests[0]["messages"][0]["role"] == "system"


def test_passing_failures_are_repeated(endpoint, ledger):
    endpoint.behave = lambda number, request: (429 if number % 2 else 503, "busy") if number <= 10 else None
    assert ledger.buy(oracle(make(endpoint))) == 20
    assert len(endpoint.requests) == 30


def test_lasting_failures_keep_what_was_answered(endpoint, ledger):
    endpoint.behave = lambda number, request: (401, "who are you") if number > 5 else None
    with pytest.raises(RuntimeError, match="AuthenticationError.*are kept"):
        ledger.buy(oracle(make(endpoint, concurrency=1, max_retries=0)))
    assert ledger.num_bought == 5
    endpoint.behave = lambda number, request: None
    assert ledger.buy(oracle(make(endpoint))) == 15


def test_no_answer_costs_money_but_no_budget(endpoint, ledger):
    replies = {0: (200, "I do not know."), 1: (400, "not allowed"), 2: (200, r"\boxed{(1,2)}"), 3: (200, "")}
    endpoint.behave = lambda number, request: replies.get(int(request["messages"][-1]["content"].split()[-1][:-1]))
    annotator = make(endpoint, price_per_million_tokens=(1.0, 4.0))
    assert ledger.buy(oracle(annotator)) == 17
    assert ledger.label("p2") == {"solution": "$(1,2)$"}
    assert all(ledger.has_declined(i) for i in ("p0", "p1", "p3"))
    assert annotator.cost == pytest.approx(19 * 300e-6)
    assert sum(event["price"] for event in ledger.events()) == pytest.approx(annotator.cost)


def test_the_cost_limit_holds(endpoint, ledger, caplog):
    # A request may cost 0.004 and does cost 0.0003: the limit pays for some, and never for one too many.
    annotator = make(endpoint, price_per_million_tokens=(1.0, 4.0), max_completion_tokens=900, max_cost=0.006)
    bought = ledger.buy(oracle(annotator))
    assert 1 <= bought < 20 and annotator.cost == pytest.approx(bought * 300e-6) and annotator.cost <= 0.006
    assert len(endpoint.requests) == bought and len(ledger.queue()) == 20 - bought
    assert "leaves no money for another request" in caplog.text


def test_the_rate_limit_holds(endpoint, ledger):
    ledger.request(ledger.queue()[:5])
    ledger.buy(oracle(make(endpoint, requests_per_minute=600)))
    times = sorted(endpoint.times)
    assert times[-1] - times[0] >= 4 * 0.1 - 0.05


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"max_cost": -1.0}, {"requests_per_minute": 0}])
def test_impossible_limits(options, endpoint):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is .* must be positive"):
        make(endpoint, **options)


def test_interrupted_and_resumed(endpoint, ledger):
    annotator = make(endpoint, concurrency=2)
    seen = []

    def impatient(rows):
        for answer in annotator(rows):
            yield answer
            seen.append(answer)
            if len(seen) == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.buy(oracle(impatient))
    assert ledger.num_bought == 7
    assert ledger.buy(oracle(annotator)) == 13
