"""Which groups of layers lose the most when quantized alone, and which to keep in half."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from samforge.core.errors import FidelityError
from samforge.transform.quantize.calibration import Calibrated, Progress, Samples
from samforge.transform.quantize.simulate import Simulation

LISTED = 8
"""Rows of the table in an error message."""
SMALLEST_SHARE = 1e-6
"""Groups of next to no work cost at least so much, so that damage stays comparable."""

Outputs = tuple[Tensor, ...]
Score = Callable[[Mapping[str, Tensor], Outputs, Outputs], float]
"""Damage of one sample from its inputs, its float outputs and its quantized outputs: 0 is none,
more is worse. Mask IoU lost, score shift."""
Gate = Callable[[tuple[str, ...]], bool]
"""Whether fidelity holds with some groups kept in half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupDamage:
    """What one group costs and what quantizing it alone loses."""

    group: str
    """Name of the group: ``layers.3.attention``."""
    share: float
    """Of the part's multiplications, 0 to 1."""
    sqnr_db: float
    """Signal to noise ratio of the worst output with this group quantized alone."""
    damage: float
    """Mean over the samples of the score; noise over signal unless another was given."""
    kept: bool = False
    """Whether it stays in half."""
    reason: str = ""
    """Why it is kept."""

    @property
    def damage_per_share(self) -> float:
        """Damage that keeping it undoes, for the multiplications that it costs."""
        return self.damage / max(self.share, SMALLEST_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFidelity:
    """Signal to noise behind one operator, with everything before it quantized."""

    path: str
    """Module path."""
    group: str
    """Its group."""
    sqnr_db: float
    """In dB; infinite where nothing before it is quantized."""


def sensitivity(
    calibrated: Calibrated,
    samples: Samples,
    *,
    precision: str,
    score: Score | None = None,
    progress: Progress | None = None,
) -> tuple[GroupDamage, ...]:
    """Quantize one group at a time, with the ranges that calibration found.

    Args:
        calibrated: The part.
        samples: A few are enough: every group runs on each.
        precision: ``int8`` or ``fp8``.
        score: Damage of a sample; the noise share of the worst output unless given.
        progress: Told after every group: ``sensitivity`` and how many runs are done.

    Returns:
        One row a group, the largest damage per multiplication first.
    """
    simulation = Simulation(calibrated, precision=precision)
    noise: dict[str, list[float]] = {group: [] for group in calibrated.groups}
    damage: dict[str, list[float]] = {group: [] for group in calibrated.groups}
    done = 0
    for sample in samples():
        for group in calibrated.groups:
            nodes = {site.node for site in calibrated.sites if site.group == group}
            exact, rounded = simulation.outputs(sample, nodes)
            noise[group].append(noise_share(exact, rounded))
            damage[group].append(
                noise[group][-1] if score is None else score(sample, exact, rounded)
            )
            done += 1
            if progress is not None:
                progress("sensitivity", done)
    shares = group_shares(calibrated)
    found = (
        GroupDamage(
            group=group,
            share=shares[group],
            sqnr_db=decibel(_mean(noise[group])),
            damage=_mean(damage[group]),
        )
        for group in calibrated.groups
    )
    return tuple(sorted(found, key=lambda row: -row.damage_per_share))


def group_shares(calibrated: Calibrated) -> dict[str, float]:
    """Each group's share of the part's multiplications."""
    shares = dict.fromkeys(calibrated.groups, 0.0)
    for site in calibrated.sites:
        shares[site.group] += site.products / calibrated.products
    return shares


def choose_kept(
    table: Sequence[GroupDamage], gate: Gate, *, max_kept: float, likely: Gate | None = None
) -> tuple[GroupDamage, ...]:
    """Keep as few multiplications in half as the gate allows.

    Groups are kept in the order of the table: the most damage per multiplication first. The number
    doubles until the gate holds and is then halved back, so that a gate that takes minutes runs a
    handful of times.

    Args:
        table: From :func:`sensitivity`.
        gate: Whether fidelity holds with these groups kept.
        max_kept: Largest share of the part's multiplications to keep.
        likely: Asked where the gate does not hold with as much kept as is allowed: whether that is
            for lack of evidence, so that as much as is allowed is the best choice.

    Returns:
        The table with ``kept`` and ``reason`` filled in.

    Raises:
        FidelityError: The gate does not hold with as much kept as is allowed.
    """
    most = _affordable(table, max_kept)
    names = [row.group for row in table]
    held: dict[int, bool] = {}

    def holds(count: int) -> bool:
        if count not in held:
            held[count] = gate(tuple(names[:count]))
        return held[count]

    low, high = -1, 0
    while not holds(high):
        if high == most:
            if likely is not None and likely(tuple(names[:most])):
                break
            raise FidelityError(_refusal(table, most, max_kept))
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return tuple(
        replace(row, kept=True, reason=f"number {index + 1} by damage per multiplication")
        if index < high
        else row
        for index, row in enumerate(table)
    )


def _affordable(table: Sequence[GroupDamage], max_kept: float) -> int:
    """How many groups from the top fit into the budget."""
    total = 0.0
    for count, row in enumerate(table):
        total += row.share
        if total > max_kept + 1e-9:
            return count
    return len(table)


def _refusal(table: Sequence[GroupDamage], most: int, max_kept: float) -> str:
    kept = sum(row.share for row in table[:most])
    rows = "".join(
        f"\n  {row.group}: {row.share:.2%} of the multiplications, {row.sqnr_db:.1f} dB alone, "
        f"damage {row.damage:.3g}"
        for row in table[:LISTED]
    )
    return (
        f"The gate does not hold with the {most} worst of {len(table)} groups in half ({kept:.1%} "
        f"of the multiplications; max_kept is {max_kept:.1%}). Raise quantization.max_kept, "
        f"calibrate on more samples, or build fp8 or fp16. The worst groups:{rows}"
    )


def layer_fidelity(
    calibrated: Calibrated, samples: Samples, *, precision: str, kept: Iterable[str] = ()
) -> tuple[LayerFidelity, ...]:
    """Signal to noise behind every quantized operator, in the order of the graph."""
    left = set(kept)
    simulation = Simulation(calibrated, precision=precision)
    nodes = {site.node for site in calibrated.sites if site.group not in left}
    signal = dict.fromkeys((site.node for site in calibrated.sites), 0.0)
    noise = dict(signal)
    for sample in samples():
        for node, (own_signal, own_noise) in simulation.layer_noise(sample, nodes).items():
            signal[node] += own_signal
            noise[node] += own_noise
    return tuple(
        LayerFidelity(
            path=site.path,
            group=site.group,
            sqnr_db=decibel(noise[site.node] / signal[site.node] if signal[site.node] else 0.0),
        )
        for site in calibrated.sites
    )


def noise_share(exact: Outputs, rounded: Outputs) -> float:
    """Noise over signal of the worst output."""
    return max(map(_noise_share, exact, rounded))


def _noise_share(exact: Tensor, rounded: Tensor) -> float:
    if not exact.is_floating_point():
        return float((exact != rounded).double().mean())
    signal = float(exact.double().square().sum())
    noise = float((rounded.double() - exact.double()).square().sum())
    if not noise:
        return 0.0
    return noise / signal if signal else math.inf


def decibel(share: float) -> float:
    """Signal to noise ratio in dB from noise over signal."""
    return -10 * math.log10(share) if share else math.inf


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
