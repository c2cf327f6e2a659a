"""Hashes and sizes that the user demands of published weights, since their publisher gives none.

A pin is the file `FILENAME.sha256` in the cache folder, which `download` compares with what it receives.
"""

import re
from typing import TYPE_CHECKING

from resshift_fast.core.files import write_atomically
from resshift_fast.weights.download import DownloadError, local_path, sha256_of
from resshift_fast.weights.partial import Record, beside, remove_foreign

if TYPE_CHECKING:
    from resshift_fast.weights.published import WeightFile

_HASH = re.compile(r"[0-9a-fA-F]{64}")


def pin(file: "WeightFile", sha256: str | None = None, size: int | None = None) -> Record:
    """Demand a hash, and a size if it is given, of a weights file; later uses of another file are errors.

    Args:
        file: a published file.
        sha256: in hexadecimal; None takes the hash and the size of the file that is there.
        size: in bytes; None demands none.

    Returns:
        What is demanded from now on.

    Raises:
        ValueError: if the hash is none, the size is negative, or the file is embedded in the package.
        FileNotFoundError: if no hash is given and there is no file to take it from.
        DownloadError: if the file that is there has another hash or size; the pin is then not written.
        OSError: if the pin cannot be written.
    """
    if file.url is None:
        raise ValueError(f"{file.filename} is embedded in the package and needs no pin")
    if sha256 is not None and not _HASH.fullmatch(sha256):
        raise ValueError(f"the sha256 of {file.filename} is {sha256!r}, expected 64 hexadecimal digits")
    if size is not None and size < 1:
        raise ValueError(f"the size of {file.filename} is {size}, expected a positive number of bytes")
    target = local_path(file)
    if target.is_file():
        found, length = sha256_of(target), target.stat().st_size
        if found != (sha256 or found).lower() or length != (size or length):
            raise DownloadError(
                f"{target} is not the file to pin: it has {length} bytes and the sha256 {found}; delete it, and it is "
                "downloaded again"
            )
        sha256, size = found, size if sha256 is not None else length
    elif sha256 is None:
        raise FileNotFoundError(f"{target} is not there to take its sha256 from; give one, {file.filename}=SHA256")
    record = Record(size, None, sha256.lower())
    path = beside(target, ".sha256")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_foreign(path)
    comment = "" if size is None else f"# size {size}\n"
    write_atomically(path, f"{comment}{record.sha256}  {target.name}\n".encode())
    return record
