"""How a video session works."""

from __future__ import annotations

from dataclasses import dataclass, replace

from samforge.core.errors import SettingError
from samforge.runtime.tracking.calls import Pass
from samforge.runtime.tracking.constants import Rules, rules_from_reference
from samforge.runtime.tracking.parts import TrackerFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingSettings:
    """What may be chosen of a video session.

    Raises:
        SettingError: A number is outside what is allowed.
    """

    rules: Rules | None = None
    """When objects are born, kept and removed; None takes those of the bundle's reference."""
    delay: int | None = None
    """Frames that a frame waits after it is decided. None: where phrases are looked for as many as
    an object may still be removed in (14), so that what is removed was never shown; else 0. With
    fewer, results come sooner and some objects vanish again."""
    detect_every: int = 1
    """Phrases are looked for on frames whose number this divides, and on the first one; between
    them objects are tracked only. Above 1 it is faster, and objects are found and removed later."""
    most_objects: int | None = None
    """Objects that live at once: of more that are found the best are kept. None: as the rules."""
    length: int | None = None
    """Frames of the video. Where there are fewer than 16 Meta's code attends otherwise, so that a
    file and a stream differ; None does as in a stream."""
    reverse: bool = False
    """Whether frames come in falling order."""

    def __post_init__(self) -> None:
        for name, least in (("delay", 0), ("detect_every", 1), ("most_objects", 1), ("length", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                raise SettingError(f"{name} is {value!r:.40}. Give a whole number from {least} up.")
        if self.detect_every is None:
            raise SettingError("detect_every is None. Give a whole number from 1 up.")

    def settled(self, facts: TrackerFacts) -> tuple[Rules, Pass]:
        """The rules and the way through the video, for one bundle.

        Raises:
            SettingError: The bundle's parts take fewer memories than the rules attend to.
        """
        rules = self.rules or rules_from_reference(facts.reference)
        if self.most_objects is not None:
            rules = replace(rules, most_tracks=self.most_objects)
        memories = rules.memory.conditioning + rules.memory.memories - 1
        if facts.most_memories is not None and memories > facts.most_memories:
            raise SettingError(
                f"The rules attend to {memories} memories, and this bundle's parts take "
                f"{facts.most_memories}. Build it for more, or lower memories or conditioning."
            )
        return rules, Pass(rules=rules.memory, length=self.length, reverse=self.reverse)
