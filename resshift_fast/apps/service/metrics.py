"""What a service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from resshift_fast import __version__

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_PHOTOS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one service, in a registry of its own.

    Args:
        model: its name.
    """

    def __init__(self, model: str):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("resshift_fast", "Version and model.", registry=self.registry).info(
            {"version": __version__, "model": model}
        )
        self.requests = Counter(
            "resshift_fast_requests",
            "Requests to restore a picture, by HTTP status, or gone if the client left.",
            ("status",),
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "resshift_fast_requests_in_progress",
            "Requests that are received, wait, are restored or are sent.",
            registry=self.registry,
        )
        self.seconds = Histogram(
            "resshift_fast_request_seconds",
            "Seconds from the arrival of a request to its result, of those with a result.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_photos = Histogram(
            "resshift_fast_batch_photos", "Photos restored at once.", buckets=_PHOTOS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "resshift_fast_batch_seconds",
            "Seconds for which the networks ran for a batch.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.pixels = Counter("resshift_fast_restored_pixels", "Pixels of all results.", registry=self.registry)

    def count_batch(self, photos: int, seconds: float) -> None:
        """Count a batch that was restored."""
        self.batch_photos.observe(photos)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All values in the text format of Prometheus."""
        return generate_latest(self.registry)
