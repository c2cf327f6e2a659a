"""Whether an error means that memory is full."""

import re

# A failed call of torch from a compiled kernel has no other text than the call, and to allocate fails for one reason.
_FAILED_ALLOCATION = re.compile(r"(aten::(new_)?empty|aoti_torch_empty).*api call failed", re.DOTALL)


class ResultTooLargeError(MemoryError):
    """There is no memory for the result itself, so that smaller tiles are of no use; the message says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of the CPU or of an accelerator.

    torch raises OutOfMemoryError for accelerators only and RuntimeError for the CPU, and OpenCV has a class of its own.
    Their text is compared, so that neither has to be imported here.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    allocating = "memory" in text and "allocate" in text
    return (
        type(error).__name__ == "OutOfMemoryError"
        or allocating
        or bool(_FAILED_ALLOCATION.search(text))
        or any(name in text for name in ("bad_alloc", "could not create a memory"))
    )
