"""An endpoint of this machine, and a ledger with questions for it."""

import pytest

from pivottrace_trl import AnnotationLedger, Query

from .fake_endpoint import IDS, Endpoint


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr("pivottrace_trl.labels.connection._LONGEST_PAUSE", 0.02)
    endpoint = Endpoint()
    yield endpoint
    endpoint.is_over.set()
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def ledger(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 20, IDS)
    ledger.request([Query(i, f"What is {n}?") for n, i in enumerate(IDS)])
    return ledger
