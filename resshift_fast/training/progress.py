"""Progress of a training on stderr: a bar on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time


class Progress:
    """Progress from step `start` to `total`; a quiet one shows notes alone."""

    def __init__(self, start: int, total: int, *, quiet: bool = False):
        self._quiet = quiet
        self._start, self._total, self._began = start, total, time.monotonic()
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, text: str) -> None:
        """Report the state after `step` steps."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        pace = (time.monotonic() - self._began) / max(1, step - self._start)
        left = int(pace * (self._total - step))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        line = f"step {step}/{self._total}  {text}  {pace:.2f} s/step  left {clock}"
        print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a separate line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
