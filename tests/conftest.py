"""What all tests share: how long properties are tried, and where the models are."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from covey.inference.catalogue import CATALOGUE
from covey.peer.home import model_cache

settings.register_profile(
    "default", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def cached_models() -> Path:
    """The folder that holds the default models; a test that needs them fails without."""
    cache = model_cache()
    missing = [
        one.name for one in CATALOGUE if not (cache / f"{one.name}-{one.digest[:16]}.gguf").exists()
    ]
    assert not missing, f"{', '.join(missing)} not in {cache}: run `make models` first"
    return cache


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let nothing be skipped in continuous integration: what is skipped there is tried nowhere."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        why = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"continuous integration allows no skip: {why}"
    return report
