"""Pipelines of the tests of videos."""

import pipelines
import pytest


@pytest.fixture(scope="module")
def bicubic():
    return pipelines.oracle(pipelines.zero)
