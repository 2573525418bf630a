"""Signatures are judged once each: the simulator hears every message many times."""

from functools import lru_cache

import pytest

from covey.identity import envelope


@pytest.fixture(autouse=True, scope="package")
def _each_signature_once() -> None:
    envelope.verify = lru_cache(maxsize=100_000)(envelope.verify)
