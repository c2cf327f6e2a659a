"""`restore` with names that lead nowhere: the other photos are restored."""

import pytest
from sample_photos import make_photo


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_restore_goes_on(restore, here):
    (here / "in").mkdir()
    (here / "in" / "x.gif").touch()
    make_photo(here / "in" / "a.png", (8, 8))
    (here / "in" / "gone.png").symlink_to("deleted.png")
    outcome = restore("in", "~photo.png", "-o", "out")
    assert outcome.code == 1
    assert len(outcome.errors) == 2 and "there is no user photo.png" in outcome.errors[0]
    assert "in/gone.png is a link to deleted.png" in outcome.errors[1]
    assert "in: left out 1 .gif, which are not read" in outcome.err
    assert outcome.err.endswith("1 restored, 2 failed, 0 skipped\n")


@pytest.mark.parametrize("option", [["-o", "~no-such-user/x"], ["-o", "o", "--mask", "~no-such-user/m"]])
def test_other_paths_of_the_command_line(program, here, option):
    make_photo(here / "a.png", (8, 8))
    model = "inpaint-imagenet" if "--mask" in option else "nano-x4"
    outcome = program("restore", "a.png", *option, "--model", model)
    assert outcome.code == 2 and "there is no user no-such-user" in outcome.errors[0]
    assert not (here / "~no-such-user").exists()
