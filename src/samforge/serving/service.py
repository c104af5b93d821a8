"""What a server does, whatever it speaks: bundles, pictures, questions. Knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from samforge.core.errors import NotHere, SettingError
from samforge.core.images import RgbImage
from samforge.media import read_image
from samforge.serving.asking import Ask
from samforge.serving.bounded import VideoRuns
from samforge.serving.cache import EncodingCache
from samforge.serving.jobs import Job, Picture, Ticket
from samforge.serving.kept import Kept, KeptAnswer
from samforge.serving.limits import Limits
from samforge.serving.model import Model, Served, State
from samforge.serving.scheduler import Scheduler
from samforge.serving.shadow import DriftWatcher, Shadow, Shadowing
from samforge.serving.watching import Watcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to serve, and within which bounds."""

    bundles: tuple[Served, ...]
    """At least one; the first answers where a request names none."""
    limits: Limits = field(default_factory=Limits)
    """Bounds of all bundles; ``waiting`` is of each."""
    shadowing: Shadowing | None = None
    """Which questions are asked of a reference as well."""

    def __post_init__(self) -> None:
        names = [one.name for one in self.bundles]
        if not names:
            raise SettingError("There is no bundle to serve. Give at least one.")
        if len(set(names)) != len(names):
            raise SettingError(
                f"Bundles have different names, got {', '.join(names)}. Give NAME=FOLDER."
            )
        if self.shadowing is not None and self.shadowing.reference not in names:
            raise SettingError(
                f"The reference {self.shadowing.reference!r:.40} is none of the bundles served: "
                f"{', '.join(names)}."
            )

    @property
    def shadowing_reference(self) -> str | None:
        """The bundle that is asked again, if one is."""
        return None if self.shadowing is None else self.shadowing.reference


class Service:
    """Bundles behind one door. Safe to use from several threads."""

    def __init__(
        self,
        settings: Settings,
        *,
        watchers: Mapping[str, Watcher] | None = None,
        drift: DriftWatcher | None = None,
    ) -> None:
        """Open the bundles; :meth:`start` verifies and loads them.

        Args:
            settings: What to serve.
            watchers: Who hears of the work of a bundle, by its name.
            drift: Who hears how far answers are from the reference's.

        Raises:
            BundleError: One is no bundle, damaged, or another than pinned.
        """
        self.settings = settings
        self.limits = settings.limits
        self.cache = EncodingCache(self.limits.cache_bytes)
        self.pictures: Kept[Picture] = Kept(self.limits.kept_bytes, "picture")
        self.answers: Kept[KeptAnswer] = Kept(self.limits.kept_bytes, "answer")
        self.videos = VideoRuns(self.limits.videos)
        self.draining = False
        heard = watchers or {}
        self.models: Mapping[str, Model] = MappingProxyType(
            {
                one.name: Model(
                    one,
                    self._read,
                    limits=self.limits,
                    cache=self.cache,
                    watcher=heard.get(one.name),
                )
                for one in settings.bundles
            }
        )

        self._shadow: Shadow | None = None
        if settings.shadowing is not None and drift is not None:
            reference = self.models[settings.shadowing.reference]
            self._shadow = Shadow(settings.shadowing, reference.require, drift)

    def start(self) -> None:
        """Begin to verify and load; :meth:`is_ready` tells when all is done."""
        for model in self.models.values():
            model.start()

    def wait(self) -> bool:
        """Wait until every bundle is ready or failed.

        Returns:
            Whether all are ready.
        """
        states = [model.wait() for model in self.models.values()]
        return set(states) == {State.READY}

    def is_ready(self) -> bool:
        """Whether every bundle has held its proof here, and requests are accepted."""
        return not self.draining and all(
            model.state is State.READY for model in self.models.values()
        )

    def is_alive(self) -> bool:
        """Whether every thread that should run does."""
        return all(one.is_alive() for one in self._schedulers())

    def model(self, name: str | None = None) -> Model:
        """A bundle by its name; the first where none is given.

        Raises:
            NotHere: There is none of this name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NotHere(
                f"No bundle {name[:64]!r} is served. Ask one of {', '.join(self.models)}."
            )
        return self.models[name]

    def segment(
        self,
        model: Model,
        picture: Picture,
        ask: Ask,
        *,
        client: str,
        seconds: float | None = None,
    ) -> Ticket:
        """Ask about a picture.

        Args:
            model: Which bundle.
            picture: It.
            ask: What to find, or to segment.
            client: Whose turn it takes.
            seconds: Time it has; None for the server's own.

        Returns:
            What the client waits with; its ``future`` gives Detections.

        Raises:
            Overloaded: The bundle is not ready, or the answer would be late.
            PromptError: There is nothing to find, or a prompt is not usable.
            SettingError: The bundle lacks a part, or a setting is outside what is allowed.
            TooLarge: There are too many prompts.
        """
        ask = ask.within(self.limits)
        if not ask.needs()(model.parts):
            raise SettingError(
                f"The bundle {model.name} has the parts {', '.join(model.parts)}, and "
                f"{'clicks' if ask.objects else 'boxes'} need another. Ask /v1/models what each "
                "bundle can do."
            )
        question = ask.question()
        ticket = model.require().submit(
            Job(
                client=client,
                seconds=self._seconds(seconds),
                picture=picture,
                question=question,
                work=None if question is not None else ask.work(),
                masks_bytes=ask.masks_bytes,
            )
        )
        if self._shadow is not None and model.name != self.settings.shadowing_reference:
            self._shadow.follow(model.name, ticket, self.limits.most_seconds)
        return ticket

    def encode(
        self, model: Model, picture: Picture, *, client: str, seconds: float | None = None
    ) -> Ticket:
        """Encode a picture ahead of the first question about it; ``future`` gives its size."""
        return model.require().submit(
            Job(
                client=client,
                seconds=self._seconds(seconds),
                picture=picture,
                work=lambda _, encoded: encoded.size_hw if encoded is not None else None,
            )
        )

    def _seconds(self, seconds: float | None) -> float:
        """Time that a request gets.

        Raises:
            SettingError: It asks for more time than the server gives, or for none.
        """
        given = self.limits.seconds if seconds is None else seconds
        if not 0 < given <= self.limits.most_seconds:
            raise SettingError(
                f"The request asks for {given:g} s. Give it more than 0 and at most "
                f"{self.limits.most_seconds:g}."
            )
        return given

    def forget(self, client: str, number: str) -> None:
        """Drop a picture that a client keeps, and its encoding unless others keep it too.

        Raises:
            NotHere: This client keeps none under the id.
        """
        picture = self.pictures.drop(client, number)
        if self.pictures.holds(picture.key):
            return
        for one in self._schedulers():
            one.forget(picture.key)

    def drain(self, seconds: float) -> bool:
        """Accept nothing more, and wait for what was accepted.

        Returns:
            Whether all of it was answered in time.
        """
        self.draining = True
        end = time.monotonic() + seconds
        drained = [one.drain(max(0.0, end - time.monotonic())) for one in self._schedulers()]
        return all(drained)

    def close(self) -> None:
        """Stop, and free the parts."""
        self.draining = True
        for model in self.models.values():
            model.close()
        if self._shadow is not None:
            self._shadow.close()

    def _schedulers(self) -> list[Scheduler]:
        """Of bundles that are ready: each asked once, for one may be closed meanwhile."""
        found = [model.scheduler for model in self.models.values()]
        return [one for one in found if one is not None]

    def _read(self, picture: Picture) -> RgbImage:
        return read_image(picture.data, max_pixels=self.limits.pixels)


def named(paths: Sequence[str]) -> dict[str, str]:
    """Folders by name: ``NAME=FOLDER``, or a folder whose last part is its name.

    Raises:
        SettingError: A folder has no name, or two have the same.
    """
    found: dict[str, str] = {}
    for one in paths:
        name, equals, folder = one.partition("=")
        if not equals:
            name, folder = one.rstrip("/").rpartition("/")[2], one
        if not name or not folder:
            raise SettingError(f"{one!r:.80} names no bundle. Give FOLDER or NAME=FOLDER.")
        if name in found:
            raise SettingError(
                f"{found[name]} and {folder} are both called {name}, and clients ask by that name. "
                f"Give one of them another: {name}-2={folder}."
            )
        found[name] = folder
    return found
