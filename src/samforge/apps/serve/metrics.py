"""Prometheus metrics of a server: one registry an application."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from samforge.serving import Drift, Service, Spent, State

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Everything that is counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "samforge_http_requests",
            "Requests that ended.",
            ("route", "method", "status"),
            registry=own,
        )
        self.request_seconds = Histogram(
            "samforge_http_request_seconds", "From first to last byte.", ("route",),
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "samforge_stage_seconds",
            "Time of answered requests by stage: queue, decode, encode, detect, pack.",
            ("model", "stage"), buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.encoded = Counter(
            "samforge_encoded_images",
            "Pictures that the vision part ran on.",
            ("model",),
            registry=own,
        )
        self.encode_batch = Histogram(
            "samforge_encode_batch_images", "Pictures in one call.", ("model",),
            buckets=_COUNTS, registry=own,
        )  # fmt: skip
        self.detect_batch = Histogram(
            "samforge_detect_batch_pairs", "Pairs of picture and phrase in one call.", ("model",),
            buckets=_COUNTS, registry=own,
        )  # fmt: skip
        self.lookups = Counter(
            "samforge_encoding_lookups", "Whether a picture's encoding was there or under way.",
            ("model", "result"), registry=own,
        )  # fmt: skip
        self.refused = Counter(
            "samforge_refused",
            "Requests that were not accepted.",
            ("model", "reason"),
            registry=own,
        )
        self.ended = Counter(
            "samforge_ended",
            "Accepted requests by how they ended.",
            ("model", "outcome"),
            registry=own,
        )

        self.shadowed = Counter(
            "samforge_shadowed", "Questions that the reference was asked as well.", ("model",),
            registry=own,
        )  # fmt: skip
        self.drift = Summary(
            "samforge_shadow_drift",
            "Against the reference: agreement and mask_iou (1 is alike), score_shift (0 is alike).",
            ("model", "measure"), registry=own,
        )  # fmt: skip

    def drifted(self, model: str, drift: Drift) -> None:
        """A question was asked of the reference as well."""
        self.shadowed.labels(model).inc()
        for measure in ("agreement", "mask_iou", "score_shift"):
            value = getattr(drift, measure)
            if value is not None:
                self.drift.labels(model, measure).observe(value)

    def watcher(self, model: str) -> ModelMetrics:
        """Who hears of one bundle's work."""
        return ModelMetrics(self, model)

    def packed(self, model: str, milliseconds: float) -> None:
        """An answer was put together."""
        self.stage_seconds.labels(model, "pack").observe(milliseconds / 1e3)

    def watch(self, service: Service) -> None:
        """Show what a service has to do, whenever it is asked."""
        self.registry.register(_Now(service))

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """Hears of one bundle's work."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._all, self._model = metrics, model

    def encoded(self, images: int, milliseconds: float) -> None:  # noqa: ARG002
        """A batch of pictures was encoded."""
        self._all.encoded.labels(self._model).inc(images)
        self._all.encode_batch.labels(self._model).observe(images)

    def detected(self, jobs: int, pairs: int, milliseconds: float) -> None:  # noqa: ARG002
        """A call of the detector ended."""
        self._all.detect_batch.labels(self._model).observe(pairs)

    def looked_up(self, *, known: bool) -> None:
        """A picture's encoding was there, or had to be made."""
        self._all.lookups.labels(self._model, "hit" if known else "miss").inc()

    def refused(self, reason: str) -> None:
        """A request was not accepted."""
        self._all.refused.labels(self._model, reason).inc()

    def ended(self, outcome: str, spent: Spent) -> None:
        """A request ended."""
        self._all.ended.labels(self._model, outcome).inc()
        if outcome == "answered":
            for stage in ("queue", "decode", "encode", "detect"):
                seconds = getattr(spent, stage) / 1e3
                self._all.stage_seconds.labels(self._model, stage).observe(seconds)


class _Now(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The state of this moment."""
        waiting = GaugeMetricFamily(
            "samforge_waiting", "Accepted, not yet answered.", labels=("model", "stage")
        )
        ready = GaugeMetricFamily("samforge_ready", "1 where proven here.", labels=("model",))
        for name, model in self._service.models.items():
            ready.add_metric((name,), float(model.state is State.READY))
            scheduler = model.scheduler
            if scheduler is None:
                continue
            load = scheduler.load()
            for stage in ("waiting", "to_decode", "to_encode", "to_detect"):
                waiting.add_metric((name, stage), getattr(load, stage))
        cache = self._service.cache
        kept = GaugeMetricFamily("samforge_cache_bytes", "Bytes of encoded pictures.")
        kept.add_metric((), cache.nbytes)
        count = GaugeMetricFamily("samforge_cache_images", "Encoded pictures that are kept.")
        count.add_metric((), len(cache))
        return (waiting, ready, kept, count)
