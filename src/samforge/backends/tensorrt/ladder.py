"""From the fastest form of attention to the safest, until the fidelity gate holds on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from samforge.backends.tensorrt.capabilities import FORMS
from samforge.core.computation import Computation
from samforge.core.errors import FidelityError, SettingError

Built = TypeVar("Built")

NOT_VERIFIED = "not verified on hardware"
"""What a bundle says whose engines were built where they cannot run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What running an engine on its GPU showed."""

    holds: bool
    """Whether every gate held."""
    figures: str
    """What was measured, in words."""
    latency_ms: float
    """Median time of a call."""
    computation: Computation | None = None
    """What the engine computes in which format, read on the GPU; None where it does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt(Generic[Built]):
    """One form that was tried."""

    form: str
    """Form of attention."""
    built: Built
    """What was built in it."""
    verdict: Verdict | None
    """What running it showed; None where it cannot run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder(Generic[Built]):
    """All attempts; the last one is to be used."""

    attempts: tuple[Attempt[Built], ...]
    """In the order they were tried."""

    @property
    def chosen(self) -> Attempt[Built]:
        """The form to use."""
        return self.attempts[-1]

    @property
    def verified(self) -> bool:
        """Whether it ran on its GPU and held."""
        return self.chosen.verdict is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know: why a safer form was taken, and what that cost."""
        last = self.chosen
        if last.verdict is None:
            return (f"The engine is {NOT_VERIFIED}: run samforge verify on a GPU it is for.",)
        failed = [attempt for attempt in self.attempts[:-1] if attempt.verdict is not None]
        notes = [
            f"Attention {attempt.form} did not hold the gate: {attempt.verdict.figures}."
            for attempt in failed
            if attempt.verdict is not None
        ]
        if failed and failed[0].verdict is not None:
            before, after = failed[0].verdict.latency_ms, last.verdict.latency_ms
            notes.append(
                f"Attention {last.form} holds it, at {after:.1f} ms instead of {before:.1f} ms "
                f"({after / before:.2f} times)."
            )
        return tuple(notes)


def safest_form(
    build: Callable[[str], Built],
    verify: Callable[[Built], Verdict | None],
    *,
    forms: Sequence[str] = FORMS,
    first: str = "fused",
) -> Ladder[Built]:
    """Build in one form after the other until one is right on this GPU.

    Args:
        build: Builds an engine in a form.
        verify: Runs it against the fp32 reference; None where there is no such GPU, and then the
            first form is kept as it is.
        forms: Forms that differ for the graph, from the fastest to the safest.
        first: The one to begin with, from the backend's ``first_form``; safer ones follow.

    Raises:
        SettingError: ``first`` is no form.
        FidelityError: Not even the safest form holds the gate.
    """
    if first not in FORMS:
        raise SettingError(f"There is no form '{first}' of attention. Forms: {', '.join(FORMS)}.")
    start = FORMS.index(first)
    rest = [form for form in forms if FORMS.index(form) >= start] or [forms[-1]]
    attempts: list[Attempt[Built]] = []
    for form in rest:
        built = build(form)
        verdict = verify(built)
        attempts.append(Attempt(form=form, built=built, verdict=verdict))
        if verdict is None or verdict.holds:
            return Ladder(attempts=tuple(attempts))
    tried = "; ".join(f"{a.form}: {a.verdict.figures}" for a in attempts if a.verdict is not None)
    raise FidelityError(
        f"No form of attention holds the gate on this GPU ({tried}). Nothing was published. Try "
        "another version of TensorRT, or another precision."
    )
