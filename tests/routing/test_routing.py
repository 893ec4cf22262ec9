"""What a pool's router buys, when, and what follows."""

import numpy as np
import pytest

from pivottrace_trl import AnnotationLedger, Answer, Route, TriageConfig
from pivottrace_trl.labels.waiting import People
from pivottrace_trl.routing import PoolRouter

from .examiners import FirstResponses


class Oracle:
    """Knows every label but those it declines."""

    batch_size = 16

    def __init__(self, declined=()):
        self.asked, self.declined = [], set(declined)

    def ask(self, queries):
        prompt_ids = [query.prompt_id for query in queries]
        self.asked += prompt_ids
        return [Answer(i, None if i in self.declined else {"solution": "1"}, "oracle") for i in prompt_ids]


@pytest.fixture
def make_router(tmp_path):
    def make(budget=20, num_prompts=100, oracle=None, people=None, **config):
        ids = [f"p{row:03d}" for row in range(num_prompts)]
        ledger = AnnotationLedger(tmp_path / "ledger.sqlite", budget, ids)
        if oracle is None:
            oracle = People(ledger) if people is None else People(ledger, 1.0, is_shown=False, sleep=people)
        rows = lambda numbers: [{"prompt": f"text {row}", "level": row} for row in numbers]  # noqa: E731
        texts = lambda numbers: [f"question {row}" for row in numbers]  # noqa: E731
        router = PoolRouter(ids, ledger, oracle, TriageConfig(**config), rows, texts)
        router.update_scores(np.arange(num_prompts), np.arange(float(num_prompts)), np.full(num_prompts, 0.1))
        return router

    return make


def below(threshold):
    return FirstResponses(lambda row: row < threshold)


def test_first_routing_buys_probes_first_and_the_most_uncertain_then(make_router):
    oracle = Oracle()
    router = make_router(oracle=oracle)
    result = router.first_routing(below(60))
    assert oracle.asked[:10] == [f"p{row:03d}" for row in range(95, 0, -10)]
    assert oracle.asked[10:] == [f"p{row:03d}" for row in [99, 98, 97, 96, 94, 93, 92, 91, 90, 89]]
    assert router.ledger.num_bought == 20
    assert (result.routes[:40] == Route.DISCARD).all() and (result.routes[95:] == Route.ANNOTATE).all()
    # The scored response of every bought row was verified, not only the probes'.
    assert np.isfinite(router.evidence.pass_rate).sum() == 20


def test_queries_carry_the_row_of_their_prompt_and_its_question(make_router):
    asked = []

    class Reader(Oracle):
        def ask(self, queries):
            asked.extend(queries)
            return super().ask(queries)

    router = make_router(oracle=Reader())
    router.first_routing(below(60))
    assert len(asked) == 20 and [query.purpose for query in asked] == ["probe"] * 10 + ["annotate"] * 10
    for query in asked:
        row = int(query.prompt_id[1:])
        assert query.row == {"prompt": f"text {row}", "level": row} and query.prompt == f"question {row}"


def test_a_policy_that_is_always_right_costs_the_probes_only(make_router):
    router = make_router(oracle=Oracle(), budget=40)
    result = router.first_routing(below(100))
    assert router.ledger.num_bought == 20
    assert (result.routes == Route.DISCARD).all()


def test_what_is_left_is_spent_where_votes_fail(make_router):
    oracle = Oracle()
    router = make_router(oracle=oracle, budget=14, probe_size=10, tau_high=1.0)
    router.first_routing(FirstResponses(lambda row: row % 3 != 0))
    assert router.ledger.num_bought == 10
    router.update_votes([30, 31, 32], [0.25, 1.0, 0.4])
    result = router.route(1, FirstResponses(lambda row: row % 3 != 0))
    assert oracle.asked[10:] == ["p032", "p030"]
    assert result.routes[30] == result.routes[32] == Route.ANNOTATE and result.routes[31] != Route.ANNOTATE
    requests = [event for event in router.ledger.events() if event["kind"] == "request"]
    assert [event["epoch"] for event in requests[10:]] == [1, 1]
    assert {event["purpose"] for event in requests[:10]} == {"probe"}


def test_prompts_that_nobody_can_answer_stay_weak(make_router):
    oracle = Oracle(declined=["p099", "p098"])
    router = make_router(oracle=oracle)
    result = router.first_routing(below(60))
    assert result.routes[99] == result.routes[98] == Route.WEAK
    router.route(1, below(60))
    assert oracle.asked.count("p099") == 1


def test_mastered_in_training_is_discarded(make_router):
    router = make_router(oracle=Oracle())
    router.first_routing(below(60))
    assert router.routes[99] == Route.ANNOTATE
    router.update_pass_rates([99], [1.0], num_rollouts=8)
    assert router.route(1, below(60)).routes[99] == Route.DISCARD


def answer(router, rows):
    router.ledger.record([Answer(router.prompt_ids[row], {"solution": "1"}, "ann") for row in rows])


def test_the_queue_of_people_holds_what_the_budget_allows(make_router):
    router = make_router()
    result = router.first_routing(below(60), buy=False)
    assert result.counts() == {"discard": 0, "weak": 80, "annotate": 20}
    assert (result.routes[router.probes] == Route.ANNOTATE).all() and result.routes[99] == Route.ANNOTATE
    assert router.ledger.num_bought == 0
    queue = router.ledger.queue()
    assert [query.purpose for query in queue] == ["probe"] * 10 + ["annotate"] * 10
    assert [query.prompt for query in queue[10:]] == [
        f"question {row}" for row in [99, 98, 97, 96, 94, 93, 92, 91, 90, 89]
    ]


def test_answers_that_arrive_later_are_taken_up_by_the_next_routing(make_router):
    router = make_router()
    assert router.first_routing(below(60)).counts() == {"discard": 0, "weak": 100, "annotate": 0}
    answer(router, router.probes)
    result = router.route(1, below(60))
    # Ten probes say where it masters the pool and where its votes fail; what it asks for now is not answered yet.
    assert (result.routes[:40] == Route.DISCARD).all() and (result.routes[99] == Route.WEAK)
    assert [query.prompt_id for query in router.ledger.queue()][:2] == ["p099", "p098"]
    answer(router, [99, 94])
    result = router.route(2, below(60))
    assert (result.routes[[99, 94]] == Route.ANNOTATE).all()
    assert np.isfinite(router.evidence.pass_rate[[99, 94]]).all()
    assert router.ledger.num_left == 20 - 12 and len(router.ledger.queue()) == 8


def test_training_waits_for_people(make_router):
    seen = []

    def answer_all(seconds):
        queue = router.ledger.queue()
        seen.append(len(queue))
        router.ledger.record([Answer(query.prompt_id, {"solution": "1"}, "ann") for query in queue])

    router = make_router(people=answer_all)
    result = router.first_routing(below(60))
    assert seen == [10, 10]
    assert (result.routes[99] == Route.ANNOTATE) and router.ledger.num_bought == 20


def test_the_queue_shows_what_the_policy_answered(make_router):
    router = make_router()
    router.first_routing(below(60))
    router.update_votes([99, 98, 97], [0.5, 0.5, 0.0], ["42", "43", None])
    router.route(1, below(60))
    assert [query.suggestion for query in router.ledger.queue()[10:13]] == ["42", "43", None]


@pytest.mark.parametrize(("budget", "size"), [(1, 1), (2, 1), (20, 10), (64, 32), (90, 32)])
def test_default_probe_size(budget, size, make_router):
    assert make_router(budget=budget, oracle=Oracle()).probe_size == size


def test_a_score_that_does_not_separate_the_pool_is_reported(make_router, caplog):
    oracle = Oracle()
    router = make_router(oracle=oracle)
    router.first_routing(FirstResponses(lambda row: row > 70))  # the most uncertain ones are right
    assert router.calibration.is_flat
    (warning,) = {record.message for record in caplog.records if "does not separate your pool" in record.message}
    assert "AUROC 0.00" in warning and "drawn at random" in warning
    # What triage asked for does not follow the score any more.
    assert len(oracle.asked) == 20 and min(oracle.asked[10:]) < "p050"


def test_with_shares_no_probe_is_bought_and_the_budget_goes_to_the_top(make_router, caplog):
    oracle = Oracle()
    router = make_router(oracle=oracle, discard_ratio=0.4)
    result = router.first_routing(below(0))
    assert oracle.asked == [f"p{row:03d}" for row in range(99, 79, -1)] and len(router.probes) == 0
    assert [(result.routes == route).sum() for route in Route] == [40, 40, 20]
    # All of the annotated were wrong: that says nothing of the ranking.
    assert "does not separate" not in caplog.text
    router.update_pass_rates([99, 98], [1.0, 0.5], num_rollouts=8)
    again = router.route(1, below(0))
    assert again.routes[99] == Route.DISCARD and again.routes[98] == Route.ANNOTATE


def test_shares_may_have_probes_too(make_router):
    router = make_router(oracle=Oracle(), discard_ratio=0.4, probe_size=4)
    router.first_routing(below(50))
    assert len(router.probes) == 4 and router.ledger.num_bought == 20


def answer_probes(router, wrong_from):
    """People answer the probes; the first response to those from a row on is wrong."""
    router.first_routing(below(wrong_from))
    router.ledger.record([Answer(query.prompt_id, {"solution": "1"}, "ann") for query in router.ledger.queue()
                          if query.purpose == "probe"])  # fmt: skip


def see_groups(router, sizes):
    """The latest groups of eight responses to some rows."""
    router.update_votes(list(sizes), [max(some, default=0) / 8 for some in sizes.values()])
    router.values.update_groups(list(sizes), list(sizes.values()), 8)


def test_the_queue_of_people_is_ordered_by_what_a_label_is_worth(make_router):
    router = make_router(budget=40)
    answer_probes(router, wrong_from=50)
    router.route(1, below(50))
    # Without groups the most uncertain come first, as the score has it: the curve only falls along the ranking.
    first = router.ledger.queue()
    assert [query.prompt_id for query in first[:3]] == ["p099", "p098", "p096"]
    values = [query.value for query in first]
    assert values == sorted(values, reverse=True) and 0 < values[-1] and values[0] <= np.sqrt(2)

    # Two minds are worth more than several, and these more than a lonely answer; of one mind, or without any, nothing.
    see_groups(router, {99: [8], 98: [], 96: [4, 4], 95: [7, 1], 94: [3, 2, 2, 1]})
    router.route(2, below(50))
    queue = {query.prompt_id: query for query in router.ledger.queue()}
    order = list(queue)
    assert "p099" not in queue and "p098" not in queue
    assert order[:3] == ["p096", "p094", "p093"] and "p095" not in queue  # twenty others are worth more
    assert queue["p094"].agreement == 0.375 and queue["p093"].agreement is None
    assert queue["p096"].value > queue["p094"].value > queue["p093"].value > 0
    kinds = [(e["kind"], e["prompt_id"]) for e in router.ledger.events() if e["epoch"] == 2]
    assert ("withdraw", "p099") in kinds and ("request", "p094") in kinds


def test_what_somebody_is_answering_does_not_leave_the_queue(make_router):
    router = make_router(budget=40)
    answer_probes(router, wrong_from=50)
    router.route(1, below(50))
    assert router.ledger.claim("p099", "ann")
    see_groups(router, {99: [8], 98: [8]})
    router.route(2, below(50))
    assert [router.ledger.query(name) is None for name in ("p099", "p098")] == [False, True]
    router.ledger.record([Answer("p099", {"solution": "1"}, "ann"), Answer("p098", {"solution": "1"}, "bob")])
    # What was given away before it left the queue is taken as well.
    assert router.ledger.label("p099") and router.ledger.label("p098")


def test_before_the_first_answer_people_are_asked_for_what_is_worth_most_of_the_pool(make_router):
    router = make_router(budget=12, probe_size=4)
    router.first_routing(below(50))
    assert [query.prompt_id for query in router.ledger.queue()][4:8] == ["p099", "p098", "p097", "p096"]
    see_groups(router, {99: [8], 3: [2, 2, 2, 2]})
    router.route(1, below(50))
    names = [query.prompt_id for query in router.ledger.queue()]
    assert "p099" not in names and len(names) == 12


def test_routing_buys_the_probes_only_where_labels_are_bought_after(make_router, tmp_path):
    oracle = Oracle()
    router = make_router(oracle=oracle)
    router.buys_after = True
    router.first_routing(below(60))
    see_groups(router, {row: [2, 2, 2] for row in range(20)})
    result = router.route(1, below(60))
    assert len(oracle.asked) == 10 == router.ledger.num_bought and (result.routes == Route.ANNOTATE).sum() <= 10


def test_what_was_declined_takes_no_share_of_the_budget_at_later_routings(make_router):
    oracle = Oracle(declined={f"p{row:03d}" for row in range(0, 100, 2)})
    router = make_router(budget=30, oracle=oracle, probe_size=10)
    router.first_routing(below(40))
    for epoch in range(1, 7):
        router.route(epoch, below(40))
    assert router.ledger.num_bought == 30 and len(oracle.asked) == len(set(oracle.asked))


def test_probes_that_wait_for_an_answer_are_asked_for_once_within_the_budget(make_router):
    router = make_router(budget=20, probe_size=10)
    router.first_routing(below(0))
    # One probe is answered, and wrong: the others still wait, where labels are wanted anyway.
    router.ledger.record([Answer(router.prompt_ids[router.probes[0]], {"solution": "1"}, "ann")])
    router.route(1, below(0))
    assert router.ledger.num_bought + router.ledger.num_open == 20


def test_people_are_not_asked_again_for_what_they_called_broken(make_router):
    router = make_router(budget=20, probe_size=4)
    answer_probes(router, wrong_from=0)
    router.route(1, below(0))
    for query in router.ledger.queue()[:3]:
        router.ledger.mark_broken(query.prompt_id, "ann")
    router.route(2, below(0))
    assert router.ledger.num_bought + router.ledger.num_open == 20
