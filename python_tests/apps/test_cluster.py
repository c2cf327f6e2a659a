"""The parts of `restore --ray` that need no cluster: places, what is listed, the ledger, and what a worker does."""

import json
import os
from pathlib import Path

import fsspec
import pytest

from resshift_fast.apps.cluster import connecting, ledger, listing, places, worker
from resshift_fast.apps.cluster.connecting import Division, division
from resshift_fast.apps.cluster.ledger import ATTEMPTS, Ledger
from resshift_fast.apps.cluster.listing import Item, LeftOut, Problem, Wanted
from resshift_fast.apps.cluster.places import Place, place_of
from resshift_fast.apps.extras import MissingExtraError
from resshift_fast.cli.plan import plan_jobs
from resshift_fast.images.search import search

NAMES = ("a.png", "a.jpg", "b.webp", "A.PNG", "photo10.png", "photo2.png", "below/a.png", "below/deeper/c.tif")


@pytest.fixture
def memory():
    """An empty store in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def fill(system, *names, root="/photos", content=b"x"):
    for name in names:
        system.pipe_file(f"{root}/{name}", content)


def listed(*inputs, out="memory://out", **options):
    """What is listed, by kind: items, and texts of the rest."""
    found = list(listing.listing(Wanted(inputs, place_of(out), **options)))
    items = [one for one in found if isinstance(one, Item)]
    return (
        items,
        [str(one.place) for one in found if isinstance(one, LeftOut)],
        [one.text for one in found if isinstance(one, Problem)],
    )


def test_results_are_named_as_on_one_machine(tmp_path, memory):
    names = [name for name in NAMES if name != "A.PNG"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    fill(memory, *names)
    found = search([tmp_path / "photos"], recursive=True, videos=True)
    options = {"suffix": ".jpg", "compare": ".png", "mask": None, "one_given": False, "roots": found.roots}
    jobs = plan_jobs(found.files, str(tmp_path / "out"), **options)
    expected = {
        job.source.relative_to(tmp_path / "photos").as_posix(): (
            job.output.relative_to(tmp_path / "out").as_posix(),
            job.compare.name,
        )
        for job in jobs
    }
    for inputs, out in (("memory://photos", "memory://out"), (str(tmp_path / "photos"), str(tmp_path / "out"))):
        items, left_out, problems = listed(inputs, out=out, recursive=True, suffix=".jpg", compare=".png")
        root, results = place_of(inputs).path.rstrip("/"), place_of(out).path.rstrip("/")
        ours = {
            one.source.path.removeprefix(f"{root}/"): (
                f"{one.folder.path}/{one.name}".removeprefix(f"{results}/"),
                one.compare,
            )
            for one in items
        }
        assert ours == expected and not left_out and not problems


def test_what_is_not_restored_is_named(memory):
    fill(memory, "a.png", "notes.txt", "raw.nef", ".hidden.png", "._a.png", "below/b.png", "empty/x.txt")
    items, left_out, problems = listed("memory://photos")
    assert [str(one.source) for one in items] == ["memory:///photos/a.png"] and not problems
    expected = {".hidden.png", "below", "empty", "notes.txt", "raw.nef"}
    assert {path.removeprefix("memory:///photos/") for path in left_out} == expected


def test_inputs_without_photos_are_problems_and_stop_no_others(memory, tmp_path):
    fill(memory, "a.png")
    fill(memory, "notes.txt", root="/texts")
    items, _, problems = listed("memory://gone", "memory://texts", str(tmp_path / "gone.png"), "memory://photos/*.png")
    assert len(items) == 1 and len(problems) == 3
    assert problems[0] == "memory:///gone does not exist; check its name, and that this machine may list it"
    assert "gone.png does not exist" in problems[1]
    assert problems[2].startswith("the folder memory:///texts has no images; accepted are .png, ")


def test_a_photo_that_is_named_twice_is_restored_once(memory):
    fill(memory, "a.png")
    assert len(listed("memory://photos", "memory://photos/a.png", "memory://photos/*")[0]) == 1


def test_results_that_exist_are_seen(memory):
    fill(memory, "a.png", "b.png", "c.png")
    fill(memory, "a.jpg", "b.png", root="/out")
    fill(memory, "c.jpg", root="/out", content=b"")
    items, _, _ = listed("memory://photos", suffix=".jpg", skip_existing=True)
    assert [one.present for one in items] == [("a.jpg",), ("b.png",), ()]


def test_masks_have_the_stems_of_photos(memory):
    fill(memory, "a.png", "b.png")
    fill(memory, "a.webp", "notes.txt", root="/masks")
    items, _, _ = listed("memory://photos", mask=place_of("memory://masks"))
    assert [str(one.mask) for one in items] == ["memory:///masks/a.webp", "memory:///masks/b.png"]
    fill(memory, "a.png", root="/masks")
    assert "two masks are called a" in listed("memory://photos", mask=place_of("memory://masks"))[2][0]


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "photos" / "below").mkdir(parents=True)
    (tmp_path / "photos" / "below" / "a.png").write_bytes(b"x")
    (tmp_path / "photos" / "below" / "up").symlink_to(tmp_path / "photos")
    items, _, _ = listed(str(tmp_path / "photos"), out=str(tmp_path / "out"), recursive=True)
    assert len(items) == 1


@pytest.mark.parametrize(
    "inputs, recursive, message",
    [
        (("memory://out/below",), False, "lies in the output folder memory:///out; choose a folder that has no input"),
        (("memory://a", "memory://a/b"), True, "memory:///a/b lies in memory:///a, which is searched with --recursive"),
    ],
)
def test_folders_that_overlap_are_refused(memory, inputs, recursive, message):
    with pytest.raises(ValueError, match=message):
        listing.check(Wanted(inputs, place_of("memory://out"), recursive))


def test_items_travel_as_text():
    item = Item(
        Place("s3://b", "b/a.png"), Place("", "/out"), "a.png", "a_compare.png", Place("", "/m.png"), ("a.png",)
    )
    assert Item.from_json(item.to_json()) == item


def test_a_protocol_that_cannot_be_used_is_one_line():
    with pytest.raises(ValueError, match=r"^nope://x: there is no protocol nope; use such as s3://"):
        place_of("nope://x")
    if not any(Path(folder, "gcsfs").exists() for folder in os.sys.path):
        with pytest.raises(MissingExtraError, match=r"gs needs another package, gcsfs: pip install gcsfs, on all"):
            place_of("gs://bucket/photos")


def test_a_store_gets_whole_files_and_keeps_no_temporary_ones(memory, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"new")
    fill(memory, "a.png", root="/out", content=b"old")

    def fail(*_, **__):
        raise OSError("the store is full")

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "mv", fail)
        with pytest.raises(OSError, match="memory:///out/a.png: the store is full"):
            places.store(tmp_path / "a.png", place_of("memory://out/a.png"))
    assert memory.cat_file("/out/a.png") == b"old" and memory.find("/out") == ["/out/a.png"]
    places.store(tmp_path / "a.png", place_of("memory://out/a.png"))
    assert memory.cat_file("/out/a.png") == b"new" and memory.find("/out") == ["/out/a.png"]
    places.check_writable(place_of("memory://out"))
    assert memory.find("/out") == ["/out/a.png"]


class Restorer:
    """Stands in for the model: the result is the photo's bytes in capitals.

    Args:
        written: the suffix that results get. error: raised instead.
    """

    def __init__(self, written=".png", error=None):
        self.written, self.error, self.seen = written, error, []

    def output_of(self, errand):
        return errand.output.with_suffix(self.written)

    def is_done(self, errand):
        return errand.output.exists()

    def failed(self, source, error):
        return {"status": "failed", "error": f"{source}: {error}"}

    def restore(self, errand):
        self.seen.append(errand)
        if self.error is not None:
            return self.failed(errand.source, self.error)
        output = self.output_of(errand)
        output.write_bytes(errand.source.read_bytes().upper())
        if errand.compare is not None:
            errand.compare.write_bytes(b"both")
        return {"status": "restored", "text": errand.source.name, "output": str(output)}


def item_of(source="memory://photos/a.jpg", folder="memory://out", **options):
    return Item(place_of(source), place_of(folder), "a.jpg", **options)


def test_a_worker_copies_from_one_store_to_another(memory):
    fill(memory, "a.jpg", content=b"pixels")
    outcome = worker.restored(item_of(compare="a_compare.png"), Restorer(), skip_existing=False)
    assert outcome == {
        "status": "restored",
        "text": "a.jpg",
        "output": "memory:///out/a.png",
        "input": "memory:///photos/a.jpg",
    }
    assert memory.cat_file("/out/a.png") == b"PIXELS" and memory.cat_file("/out/a_compare.png") == b"both"


def test_errors_have_the_names_of_stores(memory):
    fill(memory, "a.jpg")
    outcome = worker.restored(item_of(), Restorer(error=ValueError("it is damaged")), skip_existing=False)
    assert outcome["error"] == "memory:///photos/a.jpg: it is damaged"
    gone = worker.restored(item_of("memory://photos/gone.jpg"), Restorer(), skip_existing=False)
    assert gone["status"] == "failed" and "memory:///photos/gone.jpg: it does not exist" in gone["error"]
    assert not memory.exists("/out")


@pytest.mark.parametrize(
    "present, compare, restores", [(("a.jpg",), None, False), (("a.jpg",), "c.png", True), (("a.png",), None, False)]
)
def test_a_worker_skips_what_exists(memory, present, compare, restores):
    fill(memory, "a.jpg")
    restorer = Restorer()
    outcome = worker.restored(item_of(present=present, compare=compare), restorer, skip_existing=True)
    assert (outcome["status"] == "restored") == restores == bool(restorer.seen)


def drain(book, wait=True):
    """The photos that a ledger hands out until it has no more, as [(number, name), ...] of each block."""
    blocks = []
    while (block := book.take()) is not None:
        if block:
            blocks.append([(index, json.loads(text)["name"]) for index, text in block])
        elif not wait:
            break
    return blocks


def items(count):
    return [Item(Place("", f"/in/{i}.png"), Place("", "/out"), f"{i}.png") for i in range(count)]


def test_a_ledger_hands_out_each_photo_once_and_again_if_it_was_lost():
    remark = Problem("nothing there")
    book = Ledger(lambda: [remark, *items(5)], workers=4)
    assert book.first(3) == 3 and book.first(99) == 5
    assert [index for block in drain(book) for index, _ in block] == [0, 1, 2, 3, 4]
    for index in (0, 3):
        assert book.begin(index)
        book.end(index, {"status": "restored"})
    assert book.news() == [remark, {"status": "restored"}, {"status": "restored"}] and book.news() == []
    assert (book.standing().listed, book.standing().open, book.standing().is_listed) == (5, 3, True)
    book.repeat()
    assert [index for block in drain(book) for index, _ in block] == [1, 2, 4]
    book.end(0, {"status": "failed"})  # from a worker that was thought to be lost: the first outcome counts
    assert book.news() == [] and not book.begin(0)


def test_a_photo_that_ends_workers_fails_and_the_others_do_not():
    book = Ledger(lambda: items(2), workers=2)
    book.first(2)
    for _ in range(ATTEMPTS):
        drain(book)
        assert book.begin(0)
        book.repeat()
    drain(book)
    assert book.begin(1) and not book.begin(0)
    (failed,) = book.news()
    assert failed["status"] == "failed" and failed["input"] == "/in/0.png"
    assert f"each of {ATTEMPTS} workers died" in failed["error"]


def test_a_ledger_holds_few_photos_and_no_worker_waits_for_lost_ones(monkeypatch):
    book = Ledger(lambda: items(5000), workers=2)
    book.first(20)
    taken = drain(book, wait=False)
    assert sum(map(len, taken)) == ledger.BLOCKS * 2
    for _ in range(4):  # two workers have died and come back
        book.started()
    assert sum(map(len, drain(book, wait=False))) == 2 * 2
    monkeypatch.setattr(ledger, "PATIENCE", 0.0)
    assert len(book.take()) == 1


def test_blocks_grow_with_the_run():
    book, sizes = Ledger(lambda: items(4500), workers=2), []
    while (block := book.take()) is not None:
        sizes.append(len(block))
        for index, _ in block:
            book.end(index, {})
    sizes = [size for size in sizes if size]
    assert sum(sizes) == 4500 and set(sizes[:2000]) == {1} and max(sizes) == 4


def test_a_listing_that_fails_says_so():
    def fail():
        yield items(1)[0]
        raise OSError("the store has gone")

    book = Ledger(fail, workers=1)
    book.first(2)
    assert [str(one) for one in book.news()] == ["the store has gone"]


@pytest.mark.parametrize(
    "machines, device, threads, workers, expected",
    [
        ([{"CPU": 8}, {"CPU": 6}], None, None, None, Division(3, "cpu", 4, 0)),
        ([{"CPU": 2}, {"CPU": 16}, {}], None, None, None, Division(9, "cpu", 2, 0)),
        ([{"CPU": 8}], "cpu", 3, None, Division(2, "cpu", 3, 0)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8}], None, None, None, Division(2, "cuda", 1, 1)),
        ([{"CPU": 8, "GPU": 2}], "cpu", None, 1, Division(1, "cpu", 4, 0)),
        ([{"CPU": 8}], "cuda", None, 5, Division(5, "cuda", 1, 1)),
    ],
)
def test_a_cluster_is_divided(machines, device, threads, workers, expected):
    assert division(machines, device, threads, workers) == expected


@pytest.mark.parametrize(
    "machines, device, threads, message",
    [
        ([{"CPU": 8}], "cuda", None, "the cluster has no GPU"),
        ([{"CPU": 2}], None, 4, "no machine of the cluster has 4 cores"),
        ([{"CPU": 2, "GPU": 1}], "cuda:1", None, "it is cpu or cuda"),
    ],
)
def test_what_does_not_fit_is_refused(machines, device, threads, message):
    with pytest.raises(ValueError, match=message):
        division(machines, device, threads, None)


def test_addresses():
    assert all(map(connecting.is_address, ("local", "auto", "10.0.0.1:6379", "head:6379", "[::1]:6379", "ray://a:1")))
    assert not any(map(connecting.is_address, ("", "photos", "photo.jpg", "C:/photos", "s3://b:1/x", "-o")))
    with pytest.raises(ValueError, match="does not run through a Ray client"):
        connecting.check_address("ray://head:10001")
