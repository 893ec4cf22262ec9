"""An annotator behind an endpoint: a local fake that is slow, overloaded, wordy or rude."""

import time
import traceback

import pytest

from pivottrace_trl import EndpointAnnotator, Query
from pivottrace_trl.labels import Opinion

from .fake_endpoint import IDS, completion


def make(endpoint, **options):
    return EndpointAnnotator("big-model", endpoint.url, "key", **options)


def test_answers_prices_and_author(endpoint, ledger):
    annotator = make(endpoint, price_per_million_tokens=(1.0, 4.0))
    assert ledger.buy(annotator) == 20
    assert all(ledger.label(i) == {"solution": str(n + 1)} for n, i in enumerate(IDS))
    assert ledger.author("p3") == "big-model"
    assert annotator.cost == pytest.approx(20 * 300e-6)
    assert sum(event["price"] for event in ledger.events()) == pytest.approx(annotator.cost)
    assert endpoint.requests[0]["messages"][0]["role"] == "system"


def test_passing_failures_are_repeated(endpoint, ledger):
    endpoint.behave = lambda number, request: (429 if number % 2 else 503, "busy") if number <= 10 else None
    assert ledger.buy(make(endpoint)) == 20
    assert len(endpoint.requests) == 30


def test_lasting_failures_keep_what_was_answered(endpoint, ledger):
    endpoint.behave = lambda number, request: (401, "who are you") if number > 5 else None
    with pytest.raises(RuntimeError, match="HTTP 401 Unauthorized.*are kept"):
        ledger.buy(make(endpoint, concurrency=1, max_retries=0))
    assert ledger.num_bought == 5
    endpoint.behave = lambda number, request: None
    assert ledger.buy(make(endpoint)) == 15


def test_no_answer_costs_money_but_no_budget(endpoint, ledger):
    # Who leaves the box out is asked once more.
    replies = {0: (200, "I do not know."), 1: (400, "not allowed"), 2: (200, r"\boxed{(1,2)}"), 3: (200, "")}
    endpoint.behave = lambda number, request: replies.get(int(request["messages"][-1]["content"].split()[-1][:-1]))
    annotator = make(endpoint, price_per_million_tokens=(1.0, 4.0))
    assert ledger.buy(annotator) == 17
    assert ledger.label("p2") == {"solution": "$(1,2)$"}
    assert all(ledger.has_declined(i) for i in ("p0", "p1", "p3"))
    assert len(endpoint.requests) == 22
    # What the endpoint rejects says nothing of its cost.
    (most,) = [
        event["price"] for event in ledger.events() if event["prompt_id"] == "p1" and event["kind"] == "decline"
    ]
    assert most > 4096 * 4e-6 and annotator.cost == pytest.approx(21 * 300e-6 + most)
    assert sum(event["price"] for event in ledger.events()) == pytest.approx(annotator.cost)


def test_the_cost_limit_holds(endpoint, ledger, caplog):
    # A request may cost 0.004 and does cost 0.0003: the limit pays for some, and never for one too many.
    annotator = make(endpoint, price_per_million_tokens=(1.0, 4.0), max_completion_tokens=900, max_cost=0.006)
    bought = ledger.buy(annotator)
    assert 7 <= bought < 20 and annotator.cost == pytest.approx(bought * 300e-6) and annotator.cost <= 0.006
    assert len(endpoint.requests) == bought and len(ledger.queue()) == 20 - bought
    assert "leaves no money for another request" in caplog.text


def test_the_rate_limit_holds(endpoint, ledger):
    ledger.request(ledger.queue()[:5])
    ledger.buy(make(endpoint, requests_per_minute=600))
    times = sorted(endpoint.times)
    assert times[-1] - times[0] >= 4 * 0.1 - 0.05


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"max_cost": -1.0}, {"requests_per_minute": 0}])
def test_impossible_limits(options, endpoint):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is .* must be positive"):
        make(endpoint, **options)


def test_interrupted_and_resumed(endpoint, ledger):
    annotator = make(endpoint, concurrency=2)
    seen = []

    class Impatient:
        batch_size = annotator.batch_size

        def ask(self, queries):
            for answer in annotator.ask(queries):
                yield answer
                seen.append(answer)
                if len(seen) == 7:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.buy(Impatient())
    assert ledger.num_bought == 7
    assert ledger.buy(annotator) == 13


KEY = "sk-SECRET-0123456789"
PRICES = (1.0, 4.0)


ONE = [Query("p6", row={"prompt": "What is 6?"})]
NO_LABEL = {
    "cut off by length": completion(r"so far \boxed{3}", ending="length"),
    "content filter": completion(r"\boxed{3}", ending="content_filter"),
    "tool call": completion(r"\boxed{3}", ending="tool_calls"),
    "no ending": completion(r"\boxed{3}", ending=None),
    "unknown ending": completion(r"\boxed{3}", ending="error"),
    "refusal": completion(None, refusal=r"I cannot answer that. \boxed{5}"),
    "error text": completion("Error 503: try again in 20 seconds."),
    "last number": completion("The answer is 5."),
    "open box": completion(r"It is \boxed{5"),
    "empty box": completion(r"It is \boxed{ }"),
    "nothing that can be read in the box": completion(r"It is \boxed{???}"),
    "error in a 200": {"error": {"message": r"overloaded, retry after \boxed{20}", "code": 503}},
    "no choices": completion() | {"choices": []},
    "null choice": completion() | {"choices": [None]},
    "content is a number": completion(5),
    "no JSON": "Bad gateway 20",
    "a list": [1, 2, 3],
}


@pytest.mark.parametrize("kind", NO_LABEL)
def test_what_is_no_label_is_none(kind, endpoint, ledger):
    endpoint.behave = lambda number, request: (200, NO_LABEL[kind])
    ledger.request([Query("p6", "What is 6?")])
    annotator = make(endpoint, price_per_million_tokens=PRICES, max_retries=1)
    try:
        assert ledger.buy(annotator) == 0
        assert ledger.has_declined("p6")
    except RuntimeError as error:
        assert "failed 2 times in a row, at last with HTTP 200 without a finished reply" in str(error)
        assert [query.prompt_id for query in ledger.queue()] == ["p6"]
    assert ledger.num_bought == 0 and len(endpoint.requests) <= 2
    assert annotator.cost > 0


def test_the_last_box_is_the_answer(endpoint):
    text = r"First \boxed{1}. Then \boxed{\frac{1}{\sqrt{2}}} follows, 20 times."
    endpoint.behave = lambda number, request: (200, completion(text))
    (answer,) = make(endpoint).ask(ONE)
    assert answer.label == r"$\frac{1}{\sqrt{2}}$"
    endpoint.behave = lambda number, request: (200, completion(r"\boxed{b}"))
    (answer,) = make(endpoint, answer_format="choice").ask(ONE)
    assert answer.label == "B"


def test_every_request_asks_for_the_box(endpoint):
    prompt = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "What is 6?"}]
    list(make(endpoint).ask([Query("p0", row={"prompt": prompt}), *ONE]))
    for request in endpoint.requests:
        system, user = request["messages"]
        assert "\\boxed{}" in system["content"] and user["content"] == "What is 6?"
    assert any(request["messages"][0]["content"].startswith("You are kind.") for request in endpoint.requests)


BAD_USAGE = {
    "missing": None,
    "empty": {},
    "null": {"prompt_tokens": None, "completion_tokens": None},
    "negative": {"prompt_tokens": -1000, "completion_tokens": -5},
    "NaN": {"prompt_tokens": float("nan"), "completion_tokens": float("nan")},
    "zero": {"prompt_tokens": 0, "completion_tokens": 0},
    "fraction": {"prompt_tokens": 1.5, "completion_tokens": 1.5},
    "text": {"prompt_tokens": "1", "completion_tokens": "1"},
    "boolean": {"prompt_tokens": True, "completion_tokens": True},
    "more than could be": {"prompt_tokens": 10**9, "completion_tokens": 5},
    "half": {"prompt_tokens": 5},
    "a list": [1, 2],
}


@pytest.mark.parametrize("kind", BAD_USAGE)
def test_usage_that_proves_nothing_costs_the_most(kind, endpoint, ledger):
    endpoint.behave = lambda number, request: (200, completion(usage=BAD_USAGE[kind]))
    most = make(endpoint, price_per_million_tokens=PRICES, max_completion_tokens=1000)
    (answer,) = most.ask(ONE)
    price = answer.price
    assert answer.label == "7" and price == most.cost >= 1000 * 4e-6
    # A limit that pays for two such requests pays for two.
    annotator = make(endpoint, price_per_million_tokens=PRICES, max_completion_tokens=1000, max_cost=2.5 * price)
    before = len(endpoint.requests)
    assert ledger.buy(annotator) == 2
    assert len(endpoint.requests) - before == 2 and annotator.cost == pytest.approx(2 * price)


@pytest.mark.parametrize("failure", [(503, "busy"), (429, "slow down"), (200, {"error": "busy"}), "drop", "late"])
def test_every_attempt_is_charged(failure, endpoint):
    endpoint.behave = lambda number, request: failure if number < 3 else None
    options = {"price_per_million_tokens": PRICES, "max_completion_tokens": 1000, "timeout": 0.3}
    annotator = make(endpoint, **options)
    (answer,) = annotator.ask(ONE)
    assert len(endpoint.requests) == 3 and answer.label == "7"
    # Two failures at the most they can cost, and one reply that says what it did.
    assert answer.price == annotator.cost >= 2 * 1000 * 4e-6 + 300e-6
    endpoint.requests.clear()
    limited = make(endpoint, **options, max_cost=1.5 * 1000 * 4e-6)
    (said,) = limited.ask(ONE)
    assert isinstance(said, Opinion) and said.has_failed and said.label is None and said.price == limited.cost
    assert len(endpoint.requests) == 1 and limited.cost <= 1.5 * 1000 * 4e-6


def test_a_slow_drip_ends_in_time(endpoint):
    endpoint.behave = lambda number, request: "drip"
    annotator = make(endpoint, timeout=0.5, max_retries=1, price_per_million_tokens=PRICES)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="failed 2 times in a row.*no reply within 0.5 s"):
        list(annotator.ask(ONE))
    assert time.monotonic() - start < 5.0 and len(endpoint.requests) == 2
    assert annotator.cost >= 2 * 4096 * 4e-6


def test_what_is_under_way_when_it_ends_is_charged(endpoint):
    endpoint.behave = lambda number, request: "late" if number > 1 else None
    annotator = make(endpoint, price_per_million_tokens=PRICES, max_completion_tokens=1000, concurrency=3)
    answers = annotator.ask([Query(f"p{n}", row={"prompt": f"What is {n}?"}) for n in range(3)])
    next(answers)
    while len(endpoint.requests) < 3:
        time.sleep(0.01)
    answers.close()
    assert annotator.cost >= 300e-6 + 2 * 1000 * 4e-6


def test_what_others_answered_is_kept_when_one_fails(endpoint, ledger):
    def behave(number, request):
        if "What is 3?" in request["messages"][-1]["content"]:
            return 404, "no such model"
        time.sleep(0.2)

    endpoint.behave = behave
    with pytest.raises(RuntimeError, match="HTTP 404 Not Found"):
        ledger.buy(make(endpoint, concurrency=20))
    assert ledger.num_bought > 0 and ledger.num_left == 20 - ledger.num_bought


ECHOES = [(401, 0), (403, 0), (404, 0), (400, 0), (429, 1), (500, 1), (200, 0)]


@pytest.mark.parametrize(("status", "retries"), ECHOES)
def test_a_server_that_echoes_the_key(status, retries, endpoint, ledger, caplog, capfd, tmp_path):
    endpoint.echoes = True
    echo = f"Incorrect API key provided: {KEY}, {KEY[:8]}*****{KEY[-4:]}. Authorization: Bearer {KEY}"
    body = completion(rf"{echo} \boxed{{{KEY}}}") if status == 200 else {"error": {"message": echo, "code": KEY}}
    endpoint.behave = lambda number, request: (status, body)
    annotator = EndpointAnnotator("m", endpoint.url, KEY, max_retries=retries, answer_format="text")
    shown = [repr(annotator), str(annotator)]
    with caplog.at_level("DEBUG"):
        for name in ("openai", "httpx", "httpcore"):
            caplog.set_level("DEBUG", name)
        try:
            ledger.buy(annotator)
        except RuntimeError as error:
            while error is not None:
                shown += ["".join(traceback.format_exception(error)), repr(error.args), str(vars(error))]
                error = error.__cause__ or error.__context__
    ledger.close()
    shown += [caplog.text, *(str(vars(record)) for record in caplog.records), *capfd.readouterr()]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert endpoint.keys == {f"Bearer {KEY}"}
    for text in shown:
        assert KEY not in text and KEY[:8] not in text


@pytest.mark.parametrize("address", ["http://user:SECRET@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=SECRET"])
def test_an_address_that_holds_a_password(address):
    with pytest.raises(ValueError, match="`base_url` holds") as info:
        EndpointAnnotator("m", address, "key")
    assert "SECRET" not in str(info.value)


def test_a_limit_needs_prices(endpoint):
    with pytest.raises(ValueError, match="`max_cost` is 5.0, but without `price_per_million_tokens`"):
        make(endpoint, max_cost=5.0)
    for prices in [(-1.0, 2.0), (float("nan"), 1.0)]:
        with pytest.raises(ValueError, match="a price is at least 0"):
            make(endpoint, price_per_million_tokens=prices, max_cost=5.0)
