"""Models that vote, and people who are asked where they disagree."""

import collections
import random
import time

import pytest

from pivottrace_trl import AnnotationLedger, AnnotatorPanel, Answer, EndpointAnnotator, Query
from pivottrace_trl.answers import MathFormat
from pivottrace_trl.labels import Opinion
from pivottrace_trl.labels.oracles import resolve_annotator
from pivottrace_trl.labels.waiting import People

from .fake_endpoint import IDS, Endpoint, completion
from .test_endpoint import BAD_USAGE, NO_LABEL


PRICES = (1.0, 4.0)
EACH = 300e-6  # what a reply of the fake endpoint costs at these prices
QUESTIONS = [Query(i, row={"prompt": f"What is {n}?"}) for n, i in enumerate(IDS)]


def make(endpoint, model="big-model", **options):
    options = {"price_per_million_tokens": PRICES, "max_completion_tokens": 1000, **options}
    return EndpointAnnotator(model, endpoint.url, "key", **options)


def question(request):
    return int(request["messages"][-1]["content"].split()[-1][:-1])


def says(*texts):
    """A server that gives each question these replies in turn."""
    seen = collections.Counter()

    def behave(number, request):
        seen[question(request)] += 1
        text = texts[min(seen[question(request)], len(texts)) - 1]
        return 200, text if isinstance(text, dict) else rf"\boxed{{{text}}}"

    return behave


def people(ledger, *annotators):
    first, has_people = resolve_annotator([*annotators, "queue"], MathFormat())
    assert has_people
    return People(ledger, first=first)


def prices(ledger):
    """What the ledger says that each author cost."""
    spent = collections.Counter()
    for event in ledger.events():
        spent[event["author"]] += event["price"]
    return {author: price for author, price in spent.items() if price}


@pytest.fixture
def other():
    endpoint = Endpoint()
    yield endpoint
    endpoint.is_over.set()
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_samples_vote_and_asking_stops_when_it_is_settled(endpoint, ledger):
    endpoint.behave = says("1/2", "3", "0.5")
    annotator = make(endpoint, num_samples=5)
    assert ledger.buy(annotator) == 20
    # Of five, three must agree: the fourth reply is the third half.
    assert len(endpoint.requests) == 80 and {request["temperature"] for request in endpoint.requests} == {1.0}
    assert ledger.label("p3") == {"solution": "1/2"} and ledger.author("p3") == "big-model x 5"
    assert [o.label for o in ledger.opinions("p3")] == ["1/2", "3", "0.5", "0.5"]
    assert prices(ledger) == {"big-model": pytest.approx(80 * EACH)}
    assert annotator.cost == ledger.spent == pytest.approx(80 * EACH)


@pytest.mark.parametrize(
    ("replies", "options", "num_requests"),
    [
        (("1", "2"), {"num_samples": 2}, 2),  # a tie
        (("1", "2", "1"), {"num_samples": 3, "min_agreement": 1.0}, 2),  # the rest cannot make it unanimous
        (("1", "2", "3"), {"num_samples": 3}, 3),
        (("1", "2", "1", "2"), {"num_samples": 4}, 4),
        (("1", completion(None, refusal="no")), {"num_samples": 2}, 2),  # no answer is a vote for none
    ],
)
def test_without_agreement_money_is_spent_but_no_label(replies, options, num_requests, endpoint, ledger):
    endpoint.behave = says(*replies)
    annotator = make(endpoint, **options)
    assert ledger.buy(annotator) == 0 and ledger.num_bought == 0
    assert all(ledger.has_declined(i) for i in IDS) and not ledger.queue()
    assert len(endpoint.requests) == 20 * num_requests
    assert annotator.cost == ledger.spent == pytest.approx(20 * num_requests * EACH)


def test_models_vote_and_each_has_its_price(endpoint, other, ledger):
    other.behave = lambda number, request: (200, r"\boxed{99}") if question(request) < 5 else None
    annotators = [make(endpoint, "a"), make(other, "b", price_per_million_tokens=(10.0, 40.0)), make(endpoint, "c")]
    panel = AnnotatorPanel(annotators)
    assert ledger.buy(panel) == 20
    # Where the first two agree the third is not asked.
    models = collections.Counter(request["model"] for request in [*endpoint.requests, *other.requests])
    assert models == {"a": 20, "b": 20, "c": 5}
    expected = {"a": 20 * EACH, "b": 200 * EACH, "c": 5 * EACH}
    assert prices(ledger) == pytest.approx(expected)
    assert [annotator.cost for annotator in annotators] == pytest.approx(list(expected.values()))
    assert ledger.spent == pytest.approx(sum(expected.values()))
    assert {ledger.author(i) for i in IDS} == {"a + b + c"}
    assert [(o.author, o.label) for o in ledger.opinions("p2")] == [("a", "3"), ("b", "99"), ("c", "3")]


def test_functions_vote_as_well():
    def first(rows):
        return [5 for _ in rows]

    def second(rows):
        return ["10/2", " ", "so be it"]

    said = list(AnnotatorPanel([first, second]).ask(QUESTIONS[:3]))
    opinions = [(s.prompt_id, s.author, s.label) for s in said if isinstance(s, Opinion)]
    assert opinions == [
        *((i, "first", "5") for i in IDS[:3]),
        ("p0", "second", "10/2"),
        *((i, "second", None) for i in IDS[1:3]),
    ]
    assert [s for s in said if isinstance(s, Answer)] == [
        Answer(i, label, "first + second") for i, label in zip(IDS[:3], ("5", None, None), strict=True)
    ]


def test_a_model_that_fails_does_not_lose_what_the_others_said(endpoint, other, ledger):
    other.behave = lambda number, request: (401, "who are you")
    endpoint.behave = lambda number, request: (
        (200, r"\boxed{0}") if request["model"] == "c" and question(request) < 4 else None
    )
    panel = AnnotatorPanel([make(endpoint, "a"), make(other, "b"), make(endpoint, "c")])
    with pytest.raises(RuntimeError, match="HTTP 401 Unauthorized"):
        ledger.buy(panel)
    # Where a and c agree it is settled without b; where they do not, b would settle it.
    assert ledger.num_bought == 16 and [query.prompt_id for query in ledger.queue()] == IDS[:4]
    failed = ledger.spent - 40 * EACH
    assert failed == pytest.approx(panel._members[1].cost) and failed > 0
    other.behave, num_requests = lambda number, request: None, len(endpoint.requests)
    assert ledger.buy(panel) == 4
    assert len(endpoint.requests) == num_requests and ledger.label("p2") == {"solution": "3"}
    assert ledger.spent == pytest.approx(sum(member.cost for member in panel._members))


def test_a_model_without_money_is_done_without(endpoint, other, ledger):
    poor = make(other, "b", max_cost=0.007, concurrency=1)
    panel = AnnotatorPanel([make(endpoint, "a"), poor, make(endpoint, "c")], min_agreement=0.6)
    assert ledger.buy(panel) == 20
    num_b = len(other.requests)
    assert 0 < num_b < 20 and poor.cost <= 0.007
    assert len(endpoint.requests) == 20 + (20 - num_b)
    assert ledger.spent == pytest.approx((40) * EACH)
    # Who needs the poor one's vote stays in the queue.
    fresh = AnnotationLedger(ledger.path.with_name("other.sqlite"), 20, IDS)
    fresh.request([Query(i, f"What is {n}?") for n, i in enumerate(IDS)])
    fresh.buy(AnnotatorPanel([make(endpoint, "a"), make(other, "b", max_cost=0.007, concurrency=1)]))
    assert 0 < fresh.num_bought < 20 and len(fresh.queue()) == 20 - fresh.num_bought


@pytest.mark.parametrize("stop", range(0, 60, 7))
def test_killed_and_resumed_nothing_is_asked_twice(stop, endpoint, other, ledger):
    """Of what was said nothing is lost but the one request that is under way."""
    other.behave = says("7", "8", "7")

    class Killed(BaseException):
        pass

    class Impatient:
        def __init__(self, oracle):
            self.oracle, self.batch_size, self.num = oracle, oracle.batch_size, 0

        def ask(self, queries):
            for said in self.oracle.ask(queries):
                if self.num == stop:
                    raise Killed
                self.num += 1
                yield said

    def panel():
        options = {"concurrency": 1, "num_samples": 3}
        return AnnotatorPanel([make(endpoint, "a", concurrency=1), make(other, "b", **options)])

    before = panel()
    with pytest.raises(Killed):
        ledger.buy(Impatient(before))
    path, kept = ledger.path, ledger.spent
    ledger.close()
    resumed = AnnotationLedger(path, 20, IDS)
    after = panel()
    resumed.buy(after)
    assert not resumed.queue() and resumed.num_bought == 1 and resumed.label("p6") == {"solution": "7"}
    # What the servers were asked is in the ledger, but for what was just said when it was killed, and what came next.
    assert resumed.spent == pytest.approx(kept + sum(member.cost for member in after._members))
    num_requests = len(endpoint.requests) + len(other.requests)
    num_lost = num_requests - round(resumed.spent / EACH)
    assert 0 <= num_lost <= 2 and num_requests <= 80 + num_lost


def test_a_person_is_asked_where_models_disagree(endpoint, other, ledger):
    other.behave = lambda number, request: (200, r"\boxed{99}") if question(request) < 5 else None
    oracle = people(ledger, AnnotatorPanel([make(endpoint, "a"), make(other, "b")]))
    assert ledger.buy(oracle) == 15
    assert sorted(query.prompt_id for query in ledger.queue()) == IDS[:5]
    assert not any(ledger.has_declined(i) for i in IDS) and ledger.spent == pytest.approx(40 * EACH)
    # People see no opinion unless they look for it.
    assert all(not query.opinions and query.suggestion is None for query in ledger.queue())
    assert [(o.author, o.label) for o in ledger.opinions("p2")] == [("a", "3"), ("b", "99"), ("a + b", None)]
    # The next routing, or another start, asks the models nothing again.
    ledger.request(ledger.queue())
    assert ledger.buy(people(ledger, AnnotatorPanel([make(endpoint, "a"), make(other, "b")]))) == 0
    assert len(endpoint.requests) == len(other.requests) == 20
    ledger.record([Answer("p2", "3", "maria", 0.5)])
    assert ledger.author("p2") == "maria" and ledger.spent == pytest.approx(40 * EACH + 0.5)
    assert ledger.num_bought == 16


def test_training_waits_for_people_only_where_models_disagree(endpoint, other, ledger):
    other.behave = lambda number, request: (200, r"\boxed{99}") if question(request) < 4 else None
    first, _ = resolve_annotator([AnnotatorPanel([make(endpoint, "a"), make(other, "b")]), "queue"], MathFormat())

    def sleep(seconds):
        assert ledger.num_bought >= 16
        ledger.record([Answer(ledger.queue()[0].prompt_id, "5", "maria")])

    assert ledger.buy(People(ledger, 0.5, is_shown=False, sleep=sleep, first=first)) == 16
    assert ledger.num_bought == 18 and len(ledger.queue()) == 2


def test_annotators_in_turn(ledger):
    asked = {"first": [], "second": []}

    def first(rows):
        asked["first"] += [row["prompt"] for row in rows]
        return [n if n < 10 else "(nothing that can be read" if n < 12 else None for n in numbers(rows)]

    def second(rows):
        asked["second"] += [row["prompt"] for row in rows]
        return [Answer(f"p{n}", n if n < 15 else None, "second", 0.25) for n in numbers(rows)]

    def numbers(rows):
        return [int(row["prompt"].split()[-1][:-1]) for row in rows]

    oracle, has_people = resolve_annotator([first, second], MathFormat())
    assert not has_people and ledger.buy(oracle) == 15
    assert len(asked["first"]) == 20 and sorted(asked["second"]) == sorted(f"What is {n}?" for n in range(10, 20))
    # What a later one answers is no decline; what nobody answers is one.
    assert [i for i in IDS if ledger.has_declined(i)] == IDS[15:]
    assert ledger.author("p3") == "first" and ledger.author("p13") == "second"
    assert ledger.spent == 10 * 0.25


def test_what_a_function_passed_on_is_not_asked_again(ledger):
    asked = []

    def function(rows):
        asked.extend(rows)
        return [None for _ in rows]

    for _ in range(3):
        assert ledger.buy(people(ledger, function)) == 0
    assert len(asked) == 20 and len(ledger.queue()) == 20
    # The last of all declines for good, and has its own say.
    ledger.buy(resolve_annotator([function], MathFormat())[0])
    assert not ledger.queue() and all(ledger.has_declined(i) for i in IDS)


@pytest.mark.parametrize("kind", NO_LABEL)
def test_hostile_replies_are_votes_for_none(kind, endpoint, ledger):
    endpoint.behave = lambda number, request: (200, NO_LABEL[kind])
    ledger.request([Query("p6", "What is 6?")])
    annotator = make(endpoint, num_samples=3, max_retries=1)
    try:
        assert ledger.buy(annotator) == 0 and ledger.has_declined("p6")
    except RuntimeError as error:
        assert "HTTP 200 without a finished reply" in str(error)
        assert [query.prompt_id for query in ledger.queue()] == ["p6"]
    assert ledger.spent == pytest.approx(annotator.cost) and ledger.spent > 0 and ledger.num_bought == 0


@pytest.mark.parametrize("kind", BAD_USAGE)
def test_usage_that_proves_nothing_is_charged_in_the_ledger_as_well(kind, endpoint, ledger):
    endpoint.behave = lambda number, request: (200, completion(usage=BAD_USAGE[kind]))
    annotator = make(endpoint, num_samples=2)
    assert ledger.buy(annotator) == 20
    assert ledger.spent == pytest.approx(annotator.cost) and annotator.cost > 40 * 1000 * 4e-6


def test_what_failed_attempts_cost_is_in_the_ledger(endpoint, ledger):
    ledger.request(ledger.queue()[:1])
    endpoint.behave = lambda number, request: (503, "busy")
    annotator = make(endpoint, max_retries=2)
    with pytest.raises(RuntimeError, match="failed 3 times"):
        ledger.buy(annotator)
    assert ledger.spent == annotator.cost > 3 * 1000 * 4e-6 and len(ledger.queue()) == 1
    # It said nothing, and may be asked again.
    endpoint.behave = lambda number, request: None
    assert ledger.buy(annotator) == 1 and ledger.spent == annotator.cost


def test_answers_that_the_verifier_cannot_tell_apart_are_no_majority(endpoint):
    endpoint.behave = says("5", "x=5", "5")
    (answer,) = [s for s in make(endpoint, num_samples=3).ask(QUESTIONS[:1]) if isinstance(s, Answer)]
    assert answer.label in ("5", None) and answer.price == 0.0


def test_samples_of_many_questions_come_at_the_same_time(endpoint):
    endpoint.behave = lambda number, request: time.sleep(0.1)
    start = time.monotonic()
    said = list(make(endpoint, num_samples=3, concurrency=20).ask(QUESTIONS))
    assert len(said) == 60 and time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "`num_samples` is 0, but must be positive"),
        ({"min_agreement": 0.5}, "`min_agreement` is 0.5, but must be a share of the votes above 0.5"),
        ({"min_agreement": 1.5}, "`min_agreement` is 1.5"),
        ({"num_samples": 3, "temperature": 0.0}, "`temperature` is 0.0, but with `num_samples=3`"),
    ],
)
def test_votes_that_make_no_sense(options, message, endpoint):
    with pytest.raises(ValueError, match=message):
        make(endpoint, **options)


def test_panels_and_lists_that_make_no_sense(endpoint):
    class Nameless:
        batch_size = 1

        def ask(self, queries):
            return []

    one = make(endpoint)
    for members in ([one], [one, make(endpoint)]):
        with pytest.raises(ValueError, match="must be at least two with different names"):
            AnnotatorPanel(members)
    with pytest.raises(ValueError, match="has no attribute `author`"):
        AnnotatorPanel([one, Nameless()])
    with pytest.raises(ValueError, match="`annotator` is 'queue', but must be"):
        resolve_annotator(["queue", one], MathFormat())
    with pytest.raises(ValueError, match="`annotator` is an empty list"):
        resolve_annotator([], MathFormat())


class Paid:
    """An oracle that counts what it was asked and what that cost."""

    batch_size = 3

    def __init__(self, author, answers, price):
        self.author, self.answers, self.price, self.asked = author, answers, price, collections.Counter()

    def ask(self, queries):
        for query in queries:
            self.asked[query.prompt_id] += 1
            yield Answer(query.prompt_id, self.answers[query.prompt_id], self.author, self.price)


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_nothing_is_paid_for_twice(seed, tmp_path):
    """Panels and lists of random members are killed, resumed, asked again and helped by a person, in random order."""
    draw = random.Random(seed)
    path = tmp_path / "ledger.sqlite"
    members = [
        Paid(name, {i: draw.choice(["1", "2", None]) for i in IDS}, draw.choice([0.0, 0.25, 1.5])) for name in "abc"
    ]
    panel = AnnotatorPanel(members[: draw.choice([2, 3])], draw.choice([0.6, 1.0]), "text")
    others = draw.sample(members[2:], draw.choice([0, 1])) if len(panel.author) < 9 else []
    charged = collections.Counter()

    class Killed(BaseException):
        pass

    class Watched:
        """Whoever is killed is so between two things that are said."""

        author, batch_size = panel.author, panel.batch_size
        num_left = 0

        def ask(self, queries):
            for said in panel.ask(queries):
                self.num_left -= 1
                yield said
                if self.num_left == 0:
                    raise Killed

    for _ in range(12):
        ledger = AnnotationLedger(path, 12, IDS, answer_format="text")
        ledger.request([Query(i, i) for i in draw.sample(IDS, draw.randrange(1, 20))])
        watched = Watched()
        watched.num_left = draw.choice([-1, draw.randrange(1, 30)])
        try:
            ledger.buy(people(ledger, watched, *others))
        except Killed:
            pass
        if draw.random() < 0.5 and (queue := ledger.queue()):
            ledger.record([Answer(queue[0].prompt_id, "9", "maria", 2.0)])
            charged["maria"] += 2.0 * (ledger.author(queue[0].prompt_id) == "maria")
        ledger.close()
    ledger = AnnotationLedger.open(path)
    assert ledger.num_bought <= 12
    for member in members:
        assert max(member.asked.values(), default=0) <= 1
        charged[member.author] += member.price * sum(member.asked.values())
    assert prices(ledger) == pytest.approx({author: price for author, price in charged.items() if price})
    assert ledger.spent == pytest.approx(sum(charged.values()))
