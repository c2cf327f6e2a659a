"""The cache folder: downloaded weights, autotuned choices and verification verdicts."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "RESSHIFT_FAST_CACHE"


def cache_dir() -> Path:
    """The cache folder, which may not exist yet.

    It is RESSHIFT_FAST_CACHE if that is set, else `resshift_fast` in the platform's cache folder: %LOCALAPPDATA% on
    Windows, ~/Library/Caches on macOS, $XDG_CACHE_HOME or ~/.cache elsewhere.

    Raises:
        OSError: the home folder is unknown.
    """
    try:
        if chosen := os.environ.get(CACHE_VARIABLE):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            configured = os.environ.get("XDG_CACHE_HOME", "")
            # The XDG specification says that relative paths must be ignored.
            base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"the home folder is unknown; name a cache folder with {CACHE_VARIABLE}=FOLDER") from error
    return base / "resshift_fast"
