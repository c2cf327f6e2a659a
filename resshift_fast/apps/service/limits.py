"""What a service takes from its clients."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may send and cost.

    Args:
        pixels: of a picture. body_bytes: of a request.
        seconds: from a request's arrival to its result, waiting included.
        queue: requests at once: those that are received, wait, are restored or are sent.
        receive_seconds: for the head of a request to arrive, and the same for its body.
        send_seconds: for a client to take its result.
        keep_alive_seconds: that a connection may be idle after an answer.
        connections: at once, idle ones included; more are answered with 503 and closed.

    Raises:
        ValueError: if one of them is not positive.
    """

    pixels: int = 1_000_000
    body_bytes: int = 32_000_000
    seconds: float = 60.0
    queue: int = 32
    receive_seconds: float = 20.0
    send_seconds: float = 60.0
    keep_alive_seconds: float = 5.0
    connections: int = 500

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, expected a positive number")
