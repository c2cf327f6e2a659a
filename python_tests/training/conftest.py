"""Fixtures of the tests of trainings."""

import pytest
from training_runs import make_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with two photos, which no test changes."""
    return make_photos(tmp_path_factory.mktemp("photos"))
