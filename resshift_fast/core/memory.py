"""Whether an error means that memory is full."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of the CPU or of an accelerator.

    torch raises OutOfMemoryError for accelerators only and RuntimeError for the CPU, and OpenCV has a class of its own.
    Their text is compared, so that neither has to be imported here.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    allocating = "memory" in text and "allocate" in text
    return type(error).__name__ == "OutOfMemoryError" or allocating or "bad_alloc" in text
