"""A page that shows a photo before and after, with a divider to drag; one file, which needs no network."""

import base64
import html
import os
from typing import BinaryIO

from resshift_fast.images.photo import Photo, encoded, suffix_for
from resshift_fast.images.results import enlarged_over_white, over_white

SUFFIX = ".html"
_BEGIN, _END = b"<!doctype html>\n", b"</html>\n"
_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}
# Nothing but what the page holds is loaded, whatever a name of a file might smuggle in.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: before and after</title>
<style>
body {{ margin: 0; background: #222; color: #ddd; font: 14px sans-serif; text-align: center; }}
#pair {{ --at: 50%; position: relative; display: inline-block; margin: 12px 12px 0; cursor: ew-resize;
  touch-action: none; user-select: none; line-height: 0; }}
img {{ display: block; max-width: calc(100vw - 24px); max-height: calc(100vh - 80px); width: auto; height: auto; }}
#before {{ position: absolute; inset: 0; width: 100%; height: 100%; clip-path: inset(0 calc(100% - var(--at)) 0 0); }}
#divider {{ position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 4px #000; }}
#divider::after {{ content: "\\25C2\\25B8"; position: absolute; top: 50%; left: 1px; transform: translate(-50%, -50%);
  padding: 16px 6px; border-radius: 16px; background: #fff; color: #222; line-height: 0; white-space: nowrap; }}
.label {{ position: absolute; top: 8px; padding: 4px 8px; background: #000a; color: #fff; line-height: 1.2; }}
p {{ margin: 8px; }}
input {{ width: min(480px, 80vw); }}
</style>
</head>
<body>
<div id="pair">
<img id="after" alt="after" draggable="false" width="{width}" height="{height}" src="{after}">
<img id="before" alt="before" draggable="false" src="{before}">
<span class="label" style="left: 8px">before</span><span class="label" style="right: 8px">after</span>
<div id="divider"></div>
</div>
<p><input id="at" type="range" min="0" max="100" step="0.1" value="50" aria-label="divider, in percent"></p>
<p>{title}: {sizes}, bicubic enlargement and result</p>
<script>
const pair = document.getElementById("pair"), at = document.getElementById("at");
const show = () => pair.style.setProperty("--at", at.value + "%");
const follow = event => {{
  const box = pair.getBoundingClientRect();
  at.value = 100 * (event.clientX - box.left) / box.width;
  show();
}};
at.addEventListener("input", show);
pair.addEventListener("pointerdown", event => {{ pair.setPointerCapture(event.pointerId); follow(event); }});
pair.addEventListener("pointermove", event => {{ if (pair.hasPointerCapture(event.pointerId)) follow(event); }});
show();
</script>
</body>
</html>
"""


def slider_page(before: Photo, after: Photo, title: str) -> bytes:
    """The page of a photo and its result.

    Both are in it as JPEG of quality 95, or as PNG if they are too large for that; transparent pixels are laid over
    white.

    Args:
        before: the photo; bicubically resized to the size of ``after``. after: its result. title: plain text.

    Returns:
        HTML in UTF-8.
    """
    sizes = f"{before.width}×{before.height} → {after.width}×{after.height}"
    page = _PAGE.format(
        policy=_POLICY,
        title=html.escape(title),
        sizes=sizes,
        width=after.width,
        height=after.height,
        before=_embedded(enlarged_over_white(before, after)),
        after=_embedded(over_white(after)),
    )
    return page.encode("utf-8", "replace")


def is_whole_page(file: BinaryIO) -> bool:
    """Whether an open file is such a page to its end."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - len(_END)))
    is_ended = file.read() == _END
    file.seek(0)
    return is_ended and file.read(len(_BEGIN)) == _BEGIN


def _embedded(photo: Photo) -> str:
    suffix = suffix_for(photo, ".jpg")
    content = base64.b64encode(encoded(f"picture{suffix}", photo)).decode()
    return f"data:{_TYPES[suffix]};base64,{content}"
