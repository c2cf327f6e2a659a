"""The page by Gradio's own client, and in a browser: results, limits, cancelling, what clients may not read."""

import gc
import json
import urllib.error
import urllib.request
import warnings
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from browser import browser, needs_browser
from local_service import PATIENCE, Enlarger, until
from PIL import Image
from sample_photos import camera_exif, make_photo, stored_for

from resshift_fast import images
from resshift_fast.apps.listening import bound
from resshift_fast.images.limits import lifted, limited
from resshift_fast.models import catalog

gradio = pytest.importorskip("gradio", reason="the extra `app` is not installed: pip install 'resshift-fast[app]'")
gradio_client = pytest.importorskip("gradio_client")
# Gradio and what it imports warn of their own, in threads too.
pytestmark = pytest.mark.filterwarnings("ignore")


RESULTS = "[...document.querySelectorAll('#restore-result img')]"


class Model(Enlarger):
    """Restores one photo, in steps, and adds `brighten`."""

    brighten, is_running, mask = 0, False, None

    def __call__(self, photo, mask=None, *, seed, progress):
        self.is_running, self.mask = True, mask
        try:
            (result,) = super().__call__([photo], seed=[seed + self.brighten], batch_size=1, progress=progress)
        finally:
            self.is_running = False
        progress(1, 1)
        return replace(photo, pixels=result.pixels)


@pytest.fixture(scope="module", autouse=True)
def garbage():
    """Collect what Gradio has not closed before the next tests, which it is no fault of."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    from resshift_fast.apps.page import Page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield Page([model.spec, catalog.get("inpaint-face")], lambda name: model, queue=4, megapixels=0.01)


@pytest.fixture(scope="module")
def address(model, page):
    """The address of the page with a model that can be held up; photos of at most 10,000 pixels."""
    from resshift_fast.apps.page import launched

    with bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with limited(10_000):
        yield launched(page, "127.0.0.1", port, 0.1)
        model.gate.set()
        page.close()
        page.blocks.close(verbose=False)


@pytest.fixture
def client(address):
    made = gradio_client.Client(address, verbose=False, analytics_enabled=False)
    yield made
    made.close()


def restore(client, path, seed=3):
    return client.predict(gradio_client.handle_file(path), "nano-x4", seed, api_name="/restore")


def test_a_photo_is_restored(client, tmp_path):
    photo = make_photo(tmp_path / "photo.png", (20, 12))
    pair, result = restore(client, photo)
    expected = images.read(photo).pixels.repeat(4, 0).repeat(4, 1) + np.uint8(3)
    np.testing.assert_array_equal(images.read(result).pixels, expected)
    assert result.endswith("photo_restored.png")
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in pair)
    assert before.shape == after.shape == (48, 80, 3)
    np.testing.assert_array_equal(after, expected)


def test_bad_photos_and_seeds_are_refused_in_one_line(client, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("hello")
    large = make_photo(tmp_path / "large.png", (101, 100))
    fine = make_photo(tmp_path / "fine.png", (9, 8))
    cut = tmp_path / "cut.png"
    cut.write_bytes(fine.read_bytes()[:100])
    for path, seed, expected in ((cut, 0, "damaged"), (fine, -1, "minimum"), (large, 0, "pixels"), (text, 0, "")):
        with pytest.raises(Exception, match=expected) as error:
            restore(client, path, seed)
        assert "Traceback" not in str(error.value)
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(fine.read_bytes() + bytes(200_000))
    with pytest.raises(Exception, match="413|size|large"):
        restore(client, heavy)


def test_files_of_this_machine_are_not_read(address, model, tmp_path):
    """Neither by the name of a photo, which Gradio's client would upload, nor by that of a download."""
    secret = make_photo(tmp_path / "secret.png", (9, 8))
    runs = len(model.batches)
    named = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [named, "nano-x4", 0]}).encode()
    request = urllib.request.Request(f"{address}gradio_api/call/restore", body, {"Content-Type": "application/json"})
    with suppress(urllib.error.HTTPError):
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{address}gradio_api/call/restore/{event}", timeout=PATIENCE) as answer:
            assert b"event: error" in answer.read()
    assert len(model.batches) == runs
    for path in (secret, "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=PATIENCE)
        assert error.value.code == 403
        error.value.close()


def test_a_restoration_is_cancelled(page, client, model, tmp_path):
    model.gate.clear()
    before = len(model.batches)
    photo = gradio_client.handle_file(make_photo(tmp_path / "a.png", (9, 8)))
    job = client.submit(photo, "nano-x4", 0, api_name="/restore")
    until(lambda: len(model.batches) > before)
    page._cancel(SimpleNamespace(session_hash="another"))
    assert not job.done()
    page._cancel(SimpleNamespace(session_hash=client.session_hash))
    with pytest.raises(Exception, match="Cancelled"):
        job.result(PATIENCE)
    model.gate.set()
    assert restore(client, tmp_path / "a.png")


def test_the_painted_mask_reaches_the_model(client, model, tmp_path):
    photo = make_photo(tmp_path / "photo.png", (20, 12))
    stroke = Image.new("RGBA", (20, 12))
    stroke.paste((255, 255, 255, 255), (5, 2, 9, 7))
    stroke.save(tmp_path / "stroke.png")
    painted = {
        "background": gradio_client.handle_file(photo),
        "layers": [gradio_client.handle_file(tmp_path / "stroke.png")],
        "composite": None,
    }
    _, result = client.predict(painted, "inpaint-face", 0, api_name="/fill")
    expected = np.zeros((12, 20), bool)
    expected[2:7, 5:9] = True
    np.testing.assert_array_equal(model.mask, expected)
    np.testing.assert_array_equal(images.read(result).pixels, images.read(photo).pixels.repeat(4, 0).repeat(4, 1))


def test_a_photo_on_its_side_is_turned_upright_in_both_tabs(client, model, tmp_path):
    """As a phone stores it, with orientation 6; the page shows it upright, and that is what is painted on."""
    upright = np.random.default_rng(1).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    stored_for(6, upright).save(tmp_path / "phone.png", exif=camera_exif(6))
    phone = gradio_client.handle_file(tmp_path / "phone.png")
    stroke = Image.new("RGBA", (20, 12))
    stroke.paste((255, 255, 255, 255), (5, 2, 9, 7))
    stroke.save(tmp_path / "stroke.png")
    painted = {"background": phone, "layers": [gradio_client.handle_file(tmp_path / "stroke.png")], "composite": None}
    for pair, result in (
        client.predict(phone, "nano-x4", 0, api_name="/restore"),
        client.predict(painted, "inpaint-face", 0, api_name="/fill"),
    ):
        restored = images.read(result)
        np.testing.assert_array_equal(restored.pixels, upright.repeat(4, 0).repeat(4, 1))
        assert [Image.open(path).size for path in pair] == [(80, 48), (80, 48)]
    assert model.mask.shape == (12, 20) and model.mask[2:7, 5:9].all() and model.mask.sum() == 20


def test_what_is_painted_is_filled_in():
    from resshift_fast.apps.page import _photo_and_mask

    upright, clear = np.random.default_rng(0).integers(0, 255, (2, 6, 8, 4)).astype(np.uint8)
    stroke = np.zeros((6, 8, 4), np.uint8)
    stroke[2:4, 3:5] = 255
    strokes, nothing = [Image.fromarray(stroke)], [Image.fromarray(0 * stroke)]
    for alpha in (None, clear[..., 3]):
        upright[..., 3] = 255 if alpha is None else alpha
        for orientation in (1, 6):
            background = stored_for(orientation, upright)
            background.info["exif"] = camera_exif(orientation).tobytes()
            photo, mask = _photo_and_mask({"background": background, "layers": strokes})
            np.testing.assert_array_equal(photo.pixels, upright[..., :3])
            np.testing.assert_array_equal(photo.alpha, alpha)
            assert mask.sum() == 4 and mask[2:4, 3:5].all()
    with pytest.raises(ValueError, match="nothing is painted"):
        _photo_and_mask({"background": background, "layers": nothing})
    with pytest.raises(ValueError, match="what is painted has 6×8 pixels, but the photo is 8×6; upload"):
        _photo_and_mask({"background": background, "layers": [strokes[0].transpose(Image.Transpose.ROTATE_90)]})


def test_models_with_weights_here_are_offered(monkeypatch, tmp_path):
    from resshift_fast.apps.page import Page, offered

    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    assert [spec.name for spec in offered([])] == ["photo-x4", "nano-x4", "photo-x1", "photo-inpaint"]
    assert [spec.name for spec in offered(["realsr-x4-v3", "inpaint-face"])] == ["realsr-x4-v3", "inpaint-face"]
    with pytest.raises(ValueError, match="nano-x5"):
        offered(["nano-x5"])
    with pytest.raises(ValueError, match="no model has its weights"):
        Page([], lambda name: None, 1, 1)
    both = Page([catalog.get("nano-x4"), catalog.get("inpaint-face")], lambda name: None, 1, 1)
    names = {one.api_name for one in both.blocks.fns.values()}
    assert {"restore", "fill"} <= names
    both.close()


@needs_browser
@pytest.mark.slow
def test_upload_cancel_result_and_slider_in_a_browser(address, model, tmp_path):
    """The photo has one colour and the result a brighter one, so that the screenshot shows where the divider is."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 60), (100, 150, 200)).save(photo)
    model.brighten = 50
    model.gate.clear()
    with browser(tmp_path / "profile", (1200, 900)) as window:
        window.open(address)
        window.until("return document.querySelector('#picture input[type=file]') !== null")
        window.type(window.find("#picture input[type=file]")[0], str(photo))
        window.until("return document.querySelector('#picture img') !== null")
        begin, cancel = window.find("#restore-begin")[0], window.find("#restore-cancel")[0]
        runs = len(model.batches)
        window.click(begin)
        until(lambda: len(model.batches) == runs + 1)
        window.click(cancel)
        until(lambda: not model.is_running)
        model.gate.set()
        window.click(begin)
        window.until(f"return {RESULTS}.filter(one => one.naturalWidth == 360).length > 1")
        place = "return document.querySelector('#restore-result .image-container').getBoundingClientRect().toJSON()"
        box = window.until(place)
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        first = edge(window, box, tmp_path / "result.png")
        window.drag(middle, (box["x"] + box["width"] * 0.25, middle[1]))
        moved = edge(window, box, tmp_path / "moved.png")
        loaded = window.run("return performance.getEntriesByType('resource').map(one => one.name)")
    assert first == pytest.approx(0.5, abs=0.03) and moved == pytest.approx(0.25, abs=0.03)
    assert all(name.startswith((address, "data:", "blob:")) for name in loaded), loaded


def edge(window, box, kept):
    """Where in its width the picture becomes brighter; the screenshot stays in a file."""
    kept.write_bytes(window.screenshot())
    with lifted(10_000_000):  # the page's limit holds for this process
        picture = np.asarray(Image.open(kept).convert("RGB")).astype(int)
    row = picture[int(box["y"] + box["height"] * 0.8), int(box["x"]) : int(box["x"] + box["width"]), 0]
    return float(np.argmax(row > 140) / len(row))
