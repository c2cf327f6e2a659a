"""The service over HTTP, by real connections: results, limits, bad input, slow and lost clients, its end."""

import io
import json
import socket
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from local_service import PATIENCE, Enlarger, encoded, form_of, picture, running, until
from PIL import Image
from pipelines import tiny
from sample_photos import camera_exif, stored_for

from resshift_fast import images
from resshift_fast.images.fitting import Fitting


@pytest.fixture
def enlarger():
    made = Enlarger()
    yield made
    made.gate.set()


def difference(image, other):
    """The largest difference of two images, in levels of 8 bits."""
    assert image.shape == other.shape
    return np.abs(image.astype(int) - other).max()


def bomb(width=30_000, height=30_000):
    """A PNG of a few hundred bytes whose header says that it is huge."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def webp_bomb():
    """An animated WebP whose canvas is small and whose only frame, which is decoded, is large."""
    file = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(file, "WEBP", save_all=True, append_images=[Image.new("RGB", (2000, 2000), 9)])
    data = bytearray(file.getvalue())
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = b"\x07\0\0\x07\0\0"
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, most", [(1, 0), (8, 1)])
def test_each_result_is_that_of_its_own_call(batch_size, most):
    """Nine at once, of three shapes and of their own seeds: bit for bit if alone, else but for rounding errors."""
    pipe = tiny("x4")
    cases = [(picture(*((20, 24), (33, 17), (70, 40))[i % 3], seed=i), i) for i in range(9)]
    with running(pipe, batch_size=batch_size) as service:
        asked = [service.later(data, f"?seed={seed}") for (data, _), seed in cases]
        for one in asked:
            one.thread.join()
        batches, photos = service.metric("batch_photos_count"), service.metric("batch_photos_sum")
    for one, ((_, pixels), seed) in zip(asked, cases, strict=True):
        assert one.answer.status == 200 and one.answer.headers["content-type"] == "image/png"
        expected = pipe(pixels, seed=seed, progress=False)
        assert difference(one.answer.pixels, expected) <= most
    assert difference(pipe(pixels, seed=seed + 1, progress=False), expected) > 8  # another seed would be found out
    assert photos == 9 and (batches < 9) == (batch_size > 1)


def test_waiting_photos_of_one_shape_are_batched_and_none_is_mixed_up(enlarger):
    enlarger.gate.clear()
    sizes = [(8, 8), (5, 7), (8, 8), (70, 40), (8, 7), (8, 8), (70, 40)]
    cases = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    with running(enlarger, batch_size=3) as service:
        asked = []
        for i, (data, _) in enumerate(cases):
            asked.append(service.later(data, f"?seed={i}"))
            until(lambda i=i: len(service.service._batcher._waiting) + sum(enlarger.batches) == i + 1)
        enlarger.gate.set()
        for one in asked:
            one.thread.join()
    # The first begins at once. Of one tile are 5 of the others, of which 3 fit; the larger ones have 3 tiles or more.
    assert enlarger.batches[:2] == [1, 3] and sum(enlarger.batches) == len(cases)
    for i, (one, (_, pixels)) in enumerate(zip(asked, cases, strict=True)):
        np.testing.assert_array_equal(one.answer.pixels, pixels.repeat(4, 0).repeat(4, 1) + np.uint8(i))


def test_forms_and_options(enlarger):
    data, pixels = picture(10, 12)
    clear = np.dstack([pixels, np.full((10, 12), 100, np.uint8)])
    with running(enlarger) as service:
        body, headers = form_of(image=data, seed=5, format="jpg", quality=50, scale=2)
        answer = service.post(body, headers=headers)
        larger = service.post(data, "?seed=5")
        same = service.post(encoded(pixels, "TIFF"), "?format=same&eight_bits=true&strip_metadata=1")
        over = service.post(encoded(clear), "?format=jpg&background=white")
        until(lambda: service.metric("restored_pixels_total") == 20 * 24 + 3 * 40 * 48)
    assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg"
    fitting = Fitting(4, 2.0, quality=50)
    expected = fitting.fit_result(images.Photo(pixels), images.read_bytes(larger.body))
    assert answer.body == images.encoded("a.jpg", expected, 50)
    assert same.headers["content-type"] == "image/tiff" and same.pixels.shape == (40, 48, 3)
    assert over.headers["content-type"] == "image/jpeg"


def test_what_the_client_should_know_is_in_a_header(enlarger):
    frames = io.BytesIO()
    first, second = (Image.fromarray(picture(8, 8, seed=i)[1]) for i in range(2))
    first.save(frames, "WEBP", save_all=True, append_images=[second])
    with running(enlarger) as service:
        notes = service.post(frames.getvalue()).headers["Resshift-Fast-Notes"]
        assert "animation of 2 frames, of which only the first is read" in notes
        assert "Resshift-Fast-Notes" not in service.post(picture(8, 8)[0]).headers


def test_masks():
    pipe = tiny("inpaint")
    data, pixels = picture(20, 24)
    mask = np.zeros((20, 24), np.uint8)
    mask[:9, :9] = 255
    with running(pipe) as service:
        body, headers = form_of(image=data, mask=encoded(mask), seed=3)
        answer = service.post(body, headers=headers)
        missing = service.post(data)
        body, headers = form_of(image=data, mask=encoded(mask[:5]))
        small = service.post(body, headers=headers)
    assert difference(answer.pixels, pipe(pixels, mask > 0, seed=3, progress=False)) == 0
    assert missing.status == 400 and "needs a mask" in missing.error
    assert small.status == 422 and "the mask is 24×5, but the picture is 24×20" in small.error


class Keeper(Enlarger):
    """Gives photos back as they are, and keeps the masks of its last call."""

    def __call__(self, photos, masks=None, **options):
        self.masks = masks
        return photos


def test_a_photo_on_its_side_is_turned_upright_and_its_mask_belongs_to_it():
    """As a phone stores it, with orientation 6."""
    upright = picture(6, 9)[1]
    mask = np.zeros((6, 9), np.uint8)
    mask[1:4, 2:8] = 255
    file = io.BytesIO()
    stored_for(6, upright).save(file, "PNG", exif=camera_exif(6))
    model = Keeper("inpaint-face")
    with running(model) as service:
        body, headers = form_of(image=file.getvalue(), mask=encoded(mask))
        answer = service.post(body, headers=headers)
    assert answer.status == 200, answer.body
    np.testing.assert_array_equal(answer.pixels, upright)
    assert Image.open(io.BytesIO(answer.body)).getexif()[0x0112] == 1
    np.testing.assert_array_equal(model.masks, [mask > 0])


BAD = {
    "nothing": (b"", "", 400, "there is no picture"),
    "text": (b"hello", "", 415, "the picture is a text file; give a PNG"),
    "pdf": (b"%PDF-1.7", "", 415, "the picture is a PDF"),
    "bytes": (bytes(range(256)), "", 415, "not an image that is known"),
    "cut": (picture(60, 60)[0][:2000], "", 422, "the picture is damaged or truncated"),
    "bomb": (bomb(), "", 413, "30000×30000 pixels, 900 megapixels, and at most 0.01 are taken"),
    "lying": (webp_bomb(), "", 422, ""),
    "pixels": (picture(101, 100)[0], "", 413, "100×101 pixels"),
    "bytes of a body": (bytes(100_001), "", 413, "at most 0.1 MB"),
    "option": (picture(8, 8)[0], "?sead=1", 400, "there is no option 'sead'; there are seed, format"),
    "seed": (picture(8, 8)[0], "?seed=-1", 400, "seed is '-1'"),
    "scale": (picture(8, 8)[0], "?scale=8", 400, "scale is 8, but nano-x4 enlarges 4 times"),
    "colour": (picture(8, 8)[0], "?background=/etc/passwd", 400, "'/etc/passwd' is not a colour"),
    "twice": (picture(8, 8)[0], "?seed=1&seed=2", 400, "'seed' is given twice"),
    "path": (b"/etc/passwd", "", 415, "the picture is a text file"),
}


def test_bad_input_is_refused_in_one_line(enlarger):
    with running(enlarger, pixels=10_000, body_bytes=100_000) as service:
        for name, (body, query, status, text) in BAD.items():
            answer = service.post(body, query)
            assert (answer.status, text in answer.error) == (status, True), (name, answer)
            assert "\n" not in answer.error and "Traceback" not in answer.error
        until(lambda: service.service.places == 0)  # it is freed when the answer has been sent
        assert not enlarger.batches
        assert service.post(picture(8, 8)[0]).status == 200


def test_bad_forms(enlarger):
    data = picture(8, 8)[0]
    whole, headers = form_of(image=data)
    cases = {
        "no picture": (form_of(seed=1)[0], "the form has no picture"),
        "not closed": (whole[: len(whole) // 2], "its end is missing"),
        "another file": (form_of(image=data, shadow=data)[0], "the form has a file 'shadow'"),
        "a mask": (form_of(image=data, mask=data)[0], "takes no mask"),
        "no form": (data, "the form is damaged"),
        "a name of a file": (form_of(image="/etc/passwd")[0], "the form has no picture"),
        "many": (form_of(image=data, **{f"a{i}": 1 for i in range(40)})[0], "more than 32 parts"),
    }
    with running(enlarger) as service:
        for name, (body, text) in cases.items():
            answer = service.post(body, headers=headers)
            assert (answer.status, text in answer.error) == (400, True), (name, answer)
        answer = service.post(data, headers={"Content-Type": "multipart/form-data"})
        assert answer.status == 400 and "boundary" in answer.error


def test_other_addresses_and_other_sites(enlarger):
    data = picture(8, 8)[0]
    with running(enlarger) as service:
        assert service.ask("GET", "/restore").status == 405
        assert "POST a picture to /restore" in service.ask("GET", "/../../etc/passwd").error
        rebound = service.post(data, headers={"Host": "attacker.example"})
        assert rebound.status == 403 and "'attacker.example' is no name of this machine" in rebound.error
        assert service.post(data, headers={"Sec-Fetch-Site": "cross-site"}).status == 403
        assert service.post(data, headers={"Host": "localhost:1"}).status == 200
    with running(enlarger, is_local=False) as service:
        assert service.post(data, headers={"Host": "photos.example"}).status == 200


def test_health_and_description(enlarger):
    with running(enlarger) as service:
        health = json.loads(service.ask("GET", "/health").body)
        assert (health["status"], health["model"]) == ("ok", "nano-x4")
        operation = json.loads(service.ask("GET", "/openapi.json").body)["paths"]["/restore"]["post"]
        assert {"seed", "format", "scale"} <= {one["name"] for one in operation["parameters"]}
        assert b"curl" in service.ask("GET", "/").body
        service.service._batcher.close()
        assert service.ask("GET", "/health").status == 503


def test_a_full_queue_is_said_before_anything_is_received(enlarger):
    enlarger.gate.clear()
    data, pixels = picture(8, 8)
    with running(enlarger, queue=2) as service:
        asked = [service.later(data) for _ in range(2)]
        until(lambda: service.service.places == 2)
        refused = service.post(data)
        assert refused.status == 429 and 1 <= int(refused.headers["Retry-After"]) <= 60
        assert "2 requests are being served" in refused.error
        enlarger.gate.set()
        for one in asked:
            one.thread.join()
            np.testing.assert_array_equal(one.answer.pixels, pixels.repeat(4, 0).repeat(4, 1))
        assert service.post(data).status == 200
        until(lambda: service.metric('requests_total{status="429"}') == 1)


def test_a_request_that_takes_too_long_is_ended(enlarger):
    enlarger.gate.clear()
    data = picture(8, 8)[0]
    with running(enlarger, seconds=0.2) as service:
        answer = service.post(data)
        assert answer.status == 504 and "longer than 0.2 seconds" in answer.error
        enlarger.gate.set()
        assert service.post(data).status == 200  # also its restoration was ended


def test_the_picture_of_a_client_that_has_gone_is_not_restored(enlarger):
    enlarger.gate.clear()
    data = picture(8, 8)[0]
    with running(enlarger) as service:
        with service.socket() as client:
            client.sendall(
                b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            until(lambda: enlarger.batches)
        until(lambda: service.service.places == 0 and service.metric('requests_total{status="gone"}') == 1)
        enlarger.gate.set()
        assert service.post(data).status == 200


@pytest.mark.parametrize("start", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_connection_without_a_request_is_closed(start, enlarger):
    with running(enlarger, receive_seconds=0.2) as service, service.socket() as client:
        client.sendall(start)
        assert client.recv(1) == b""


def test_an_idle_connection_is_closed_after_its_time_and_a_slow_second_request_too(enlarger):
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def closes(service, rest, within):
        """Whether the service closes a connection that has its answer, and sends no more than this."""
        with service.socket() as client, client.makefile("rb") as answer:
            client.sendall(ask)
            head = iter(answer.readline, b"\r\n")
            (length,) = (int(line.split()[1]) for line in head if line.lower().startswith(b"content-length"))
            assert json.loads(answer.read(length))["status"] == "ok"
            client.sendall(rest)
            client.settimeout(within)
            try:
                return client.recv(1) == b""
            except TimeoutError:
                return False

    with running(enlarger, keep_alive_seconds=0.2) as service:
        assert closes(service, b"", PATIENCE)
        assert not closes(service, b"GET /hea", 0.6)  # which has begun, and 20 seconds to arrive
    with running(enlarger, receive_seconds=0.2) as service:
        assert closes(service, b"GET /hea", PATIENCE)
        assert not closes(service, b"", 0.6)  # it may be idle for longer


def test_more_connections_are_answered_and_closed(enlarger):
    enlarger.gate.clear()
    data, pixels = picture(8, 8)
    with running(enlarger, connections=3) as service:
        asked = service.later(data)
        until(lambda: service.service.places == 1)
        idle = [service.socket() for _ in range(2)]
        until(lambda: len(service.server.server_state.connections) == 3)
        for _ in range(2):
            with service.socket() as client:
                answer = client.makefile("rb").read()
                assert answer.startswith(b"HTTP/1.1 503 ") and b"Connection: close" in answer
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith(
                    "there are too many connections"
                )
        idle.pop().close()
        until(lambda: len(service.server.server_state.connections) == 2)
        assert service.ask("GET", "/health").status == 200
        enlarger.gate.set()
        asked.thread.join()
        np.testing.assert_array_equal(asked.answer.pixels, pixels.repeat(4, 0).repeat(4, 1))
        idle.pop().close()


def test_half_a_picture_is_not_waited_for(enlarger):
    data = picture(8, 8)[0]
    head = b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
    with running(enlarger, receive_seconds=0.2) as service:
        with service.socket() as client:
            client.sendall(head + data[:50])
            assert client.recv(12) == b"HTTP/1.1 408"
        with service.socket() as client:
            client.sendall(head + data[:50])
        until(lambda: service.metric('requests_total{status="gone"}') == 1)
        until(lambda: service.service.places == 0)
        assert not enlarger.batches


def test_a_body_without_a_length_is_bounded_too(enlarger):
    with running(enlarger, body_bytes=1000) as service, service.socket() as client:
        client.sendall(b"POST /restore HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            client.sendall(b"200\r\n" + bytes(512) + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_client_that_takes_no_answer_is_not_waited_for(enlarger):
    data = picture(300, 300)[0]
    with running(enlarger, send_seconds=0.3, send_buffer=8192) as service, service.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        ask = b"POST /restore?format=tiff HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
        client.sendall(ask + data)
        until(lambda: service.service.restored == 1)
        assert service.service.places == 1  # it is held until the answer is sent
        until(lambda: service.service.places == 0)
        taken = 0
        with suppress(ConnectionResetError):
            while part := client.recv(1 << 16):
                taken += len(part)
        assert taken < 1200 * 1200  # of a TIFF of noise


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"POST /restore HTTP/1.1\r\nHost: a\r\n" * 3]
)
def test_what_is_no_http_is_answered(junk, enlarger):
    with running(enlarger) as service, service.socket() as client:
        client.sendall(junk + b"\r\n\r\n")
        assert client.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 403")


def test_the_fault_of_one_is_not_that_of_its_batch(enlarger, caplog):
    def fault(photos):
        if len(photos) > 1:
            raise MemoryError
        if photos[0].pixels.max() == 0:
            raise KeyError("a fault of the program")

    enlarger.gate.clear()
    cases = [picture(8, 8, seed=1)[0], encoded(np.zeros((8, 8, 3), np.uint8)), picture(8, 8, seed=2)[0]]
    with running(enlarger) as service:
        first = service.later(picture(8, 8)[0])
        until(lambda: enlarger.batches)
        asked = [service.later(data) for data in cases]
        until(lambda: len(service.service._batcher._waiting) == 3)
        enlarger.fault = fault
        enlarger.gate.set()
        for one in (first, *asked):
            one.thread.join()
    assert [one.answer.status for one in asked] == [200, 500, 200] and first.answer.status == 200
    assert "internal error" in asked[1].answer.error and "KeyError" in caplog.text
    assert enlarger.batches == [1, 3, 1, 1, 1]


def test_out_of_memory_is_said(enlarger):
    def fault(photos):
        raise MemoryError

    enlarger.fault = fault
    with running(enlarger) as service:
        answer = service.post(picture(8, 8)[0])
        assert answer.status == 503 and "not enough memory" in answer.error


def test_stopping_finishes_what_was_taken_and_refuses_the_rest(enlarger):
    enlarger.gate.clear()
    data, pixels = picture(8, 8)
    with running(enlarger) as service:
        asked = [service.later(data), service.later(data)]
        until(lambda: service.service.places == 2)
        service.server.stop()

        def is_closed():
            try:
                service.socket().close()
            except ConnectionRefusedError:
                return True
            return False

        until(is_closed)
        enlarger.gate.set()
        for one in asked:
            one.thread.join()
            np.testing.assert_array_equal(one.answer.pixels, pixels.repeat(4, 0).repeat(4, 1))
        assert not service.server.force_exit


def test_a_request_on_an_open_connection_is_refused_while_it_stops(enlarger):
    with running(enlarger) as service:
        service.service.stopping = True
        answer = service.post(picture(8, 8)[0])
        assert answer.status == 503 and answer.error == "the service is stopping"
