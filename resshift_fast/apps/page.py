"""A page in the browser that restores photos, by Gradio: upload, model, mask, progress, cancel, before and after."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from resshift_fast import images
from resshift_fast.diffusion.noise import check_seed
from resshift_fast.images import Photo
from resshift_fast.images.results import enlarged_over_white, over_white
from resshift_fast.models import catalog, loading
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.pipeline import Pipeline

_KEPT_SECONDS = 3600  # of uploads and results
_PROGRESS = gr.Progress()  # Gradio gives each call its own
_SLIDER_SIDE = 2000  # pixels, of the pictures that are compared; the result to download is whole


def offered(names: Sequence[str]) -> list[ModelSpec]:
    """The models to choose from: those of these names, or all whose weights are on this machine.

    Raises:
        ValueError: for a name that is not in the catalogue.
    """
    if names:
        return [catalog.get(name) for name in names]
    return [spec for spec in catalog.MODELS.values() if loading.is_here(spec)]


class _CancelledError(Exception):
    """The restoration was cancelled."""


class Page:
    """The page, and what runs behind it: one restoration at a time, others wait in Gradio's queue.

    Args:
        specs: models to choose from. load: the pipeline of a model's name; that of the last one is kept.
        queue: most restorations that wait. megapixels: that are taken, for the text of the page.

    Attributes:
        blocks: for Gradio to launch.
    """

    def __init__(self, specs: Sequence[ModelSpec], load: Callable[[str], Pipeline], queue: int, megapixels: float):
        if not specs:
            raise ValueError("no model has its weights on this machine; name one with --model, which downloads them")
        self._load, self._megapixels = load, megapixels
        self._kept: tuple[str, Pipeline] | None = None
        self._lock = threading.Lock()
        self._running: dict[str, threading.Event] = {}  # by session
        self._folder = tempfile.TemporaryDirectory(prefix="resshift-fast-page-")
        plain = [spec.name for spec in specs if not spec.needs_mask]
        inpainting = [spec.name for spec in specs if spec.needs_mask]
        with gr.Blocks(
            title="resshift-fast", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)
        ) as self.blocks:
            gr.Markdown("# resshift-fast")
            if plain:
                with gr.Tab("Restore"):
                    self._restoring(plain)
            if inpainting:
                with gr.Tab("Fill in"):
                    self._filling(inpainting)
            self.blocks.unload(self._cancel)
        self.blocks.queue(max_size=queue, default_concurrency_limit=1)

    def close(self) -> None:
        """Cancel what runs, and delete the results."""
        for event in list(self._running.values()):
            event.set()
        self._folder.cleanup()

    def _restoring(self, names: list[str]) -> None:
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    type="filepath",
                    image_mode=None,  # the file as it was sent
                    sources=["upload", "clipboard"],
                    label=f"Photo, of at most {self._megapixels:g} megapixels",
                    elem_id="picture",
                )
                options = self._options(names)
            result = self._result("restore")
        self._connect([picture, *options], result, self._restore, "restore")

    def _filling(self, names: list[str]) -> None:
        with gr.Row():
            with gr.Column():
                picture = gr.ImageEditor(
                    type="pil",  # with the orientation, which an array has not
                    sources=["upload", "clipboard"],
                    transforms=[],
                    layers=False,
                    brush=gr.Brush(colors=["#ffffff"], color_mode="fixed"),
                    label=f"Photo, of at most {self._megapixels:g} megapixels: paint what is to be filled in",
                    elem_id="painted",
                )
                options = self._options(names)
            result = self._result("fill")
        self._connect([picture, *options], result, self._fill, "fill")

    def _options(self, names: list[str]) -> list[Any]:
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        return [model, gr.Number(0, label="Seed of the noise", precision=0, minimum=0)]

    def _result(self, name: str) -> list[Any]:
        with gr.Column():
            slider = gr.ImageSlider(type="pil", format="png", label="Before and after", elem_id=f"{name}-result")
            file = gr.File(label="Result", elem_id=f"{name}-file")
        return [slider, file]

    def _connect(self, inputs: list[Any], outputs: list[Any], run: Callable[..., Any], name: str) -> None:
        with gr.Row():
            begin = gr.Button("Restore", variant="primary", elem_id=f"{name}-begin")
            cancel = gr.Button("Cancel", elem_id=f"{name}-cancel")
        event = begin.click(run, inputs, outputs, api_name=name, concurrency_id="restoration")
        # A function that runs in a thread goes on when Gradio cancels it.
        cancel.click(self._cancel, None, None, cancels=[event], queue=False, api_visibility="private")

    def _restore(
        self, path: str | None, name: str, seed: float, request: gr.Request, progress: gr.Progress = _PROGRESS
    ) -> tuple[Any, str]:
        if not path:
            raise gr.Error("There is no photo; upload one.", print_exception=False)
        return self._run(lambda: (images.read(path), None), Path(path).stem, name, seed, request, progress)

    def _fill(
        self,
        painted: dict[str, Any] | None,
        name: str,
        seed: float,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> tuple[Any, str]:
        if not painted or painted["background"] is None:
            raise gr.Error("There is no photo; upload one.", print_exception=False)
        return self._run(lambda: _photo_and_mask(painted), "photo", name, seed, request, progress)

    def _run(
        self,
        read: Callable[[], tuple[Photo, np.ndarray | None]],
        stem: str,
        name: str,
        seed: float,
        request: gr.Request,
        progress: gr.Progress,
    ) -> tuple[Any, str]:
        """Restore a photo; the value is what `_result` shows."""
        session = request.session_hash or ""
        event = self._running[session] = threading.Event()

        def advance(done: int, total: int) -> None:
            if event.is_set():
                raise _CancelledError
            progress((done, total), desc="Restoring", unit="steps")

        try:
            before, mask = read()
            with self._lock:
                after = self._pipe(name)(before, mask, seed=check_seed("the seed", int(seed)), progress=advance)
            folder = tempfile.mkdtemp(dir=self._folder.name)
            path = Path(folder, f"{stem[:100]}_restored.png")
            images.write(path, after)
        except _CancelledError:
            raise gr.Error("Cancelled.", print_exception=False) from None
        except (ValueError, TypeError, OSError, MemoryError) as error:
            raise gr.Error(
                " ".join(str(error).split()) or "There is not enough memory.", print_exception=False
            ) from None
        finally:
            self._running.pop(session, None)
        return _pair(before, after), str(path)

    def _pipe(self, name: str) -> Pipeline:
        if self._kept is None or self._kept[0] != name:
            self._kept = None  # frees its memory before the next is loaded
            self._kept = name, self._load(name)
        return self._kept[1]

    def _cancel(self, request: gr.Request) -> None:
        event = self._running.get(request.session_hash or "")
        if event is not None:
            event.set()


def _photo_and_mask(painted: dict[str, Any]) -> tuple[Photo, np.ndarray]:
    """The photo of an ImageEditor, whose images are RGBA, upright, and where it was painted on, bool [H, W]."""
    photo = images.from_pil(painted["background"], name="the photo")
    if photo.alpha is not None and photo.alpha.min() == 255:
        photo = replace(photo, alpha=None)
    mask = np.zeros((photo.height, photo.width), bool)
    for layer in painted["layers"]:
        if layer.size != (photo.width, photo.height):
            size = f"{layer.width}×{layer.height} pixels, but the photo is {photo.width}×{photo.height}"
            raise ValueError(f"what is painted has {size}; upload the photo again and paint on it as it is shown")
        mask |= np.asarray(layer)[..., 3] > 127
    if not mask.any():
        raise ValueError("nothing is painted; paint over what is to be filled in")
    return photo, mask


def _pair(before: Photo, after: Photo) -> tuple[Any, Any]:
    """Both as they are compared, of one size, which is that of the result if it is not large."""
    pair = [images.to_pil(one) for one in (enlarged_over_white(before, after), over_white(after))]
    for one in pair:
        one.thumbnail((_SLIDER_SIDE, _SLIDER_SIDE))
    return pair[0], pair[1]


def launched(page: Page, host: str, port: int, megabytes: float) -> str:
    """Serve the page in threads of its own until `page.blocks.close()`; returns its address."""
    _, url, _ = page.blocks.launch(
        server_name=host,
        server_port=port,
        max_file_size=int(megabytes * 1e6),
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gr.themes.Base(font="system-ui", font_mono="monospace"),
    )
    return url
