"""How long torch's threads wait for work in the program, before they sleep."""

import os

import pytest

from resshift_fast import cli


@pytest.fixture
def undecided(monkeypatch):
    for name in cli.WAITING:
        monkeypatch.setenv(name, "")  # so that it is restored at the end
        monkeypatch.delenv(name)


def test_threads_sleep_soon(undecided):
    cli.let_threads_sleep()
    assert [os.environ.get(name) for name in cli.WAITING] == [None, "1000", None]


@pytest.mark.parametrize("name", cli.WAITING)
def test_the_user_decides(undecided, monkeypatch, name):
    monkeypatch.setenv(name, "active")
    cli.let_threads_sleep()
    assert [os.environ.get(each) for each in cli.WAITING] == [
        "active" if each == name else None for each in cli.WAITING
    ]
