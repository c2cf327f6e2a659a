"""`restore` with names that lead nowhere: the other photos are restored."""

import pytest
from sample_photos import make_photo


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_restore_goes_on(restore, here):
    (here / "in").mkdir()
    (here / "in" / "x.cr2").touch()
    make_photo(here / "in" / "a.png", (8, 8))
    (here / "in" / "gone.png").symlink_to("deleted.png")
    outcome = restore("in", "~photo.png", "-o", "out")
    assert outcome.code == 1
    assert len(outcome.errors) == 2 and "there is no user photo.png" in outcome.errors[0]
    assert "in/gone.png is a link to deleted.png" in outcome.errors[1]
    lines = outcome.err.splitlines()
    assert lines[-2] == "left out 1: in/x.cr2: camera raw is not read; develop them as 16-bit TIFF or PNG first"
    assert lines[-1] == "1 restored, 2 failed, 0 skipped"


def test_what_is_left_out_is_named_also_where_nothing_is_restored(restore, here):
    (here / "in" / "deeper").mkdir(parents=True)
    for number in range(25):
        (here / "in" / f"{number}.cr2").touch()
    outcome = restore("in", "-o", "out")
    assert outcome.code == 1 and "the folder in has no images" in outcome.errors[0]
    assert "left out 25: in/0.cr2, in/1.cr2" in outcome.err and "in/19.cr2 and 5 more: camera raw" in outcome.err
    assert "left out 1: in/deeper: folders below a folder are not searched" in outcome.err


@pytest.mark.parametrize("option", [["-o", "~no-such-user/x"], ["-o", "o", "--mask", "~no-such-user/m"]])
def test_other_paths_of_the_command_line(program, here, option):
    make_photo(here / "a.png", (8, 8))
    model = "inpaint-imagenet" if "--mask" in option else "nano-x4"
    outcome = program("restore", "a.png", *option, "--model", model)
    assert outcome.code == 2 and "there is no user no-such-user" in outcome.errors[0]
    assert not (here / "~no-such-user").exists()
