"""Every fusion in the order they run, and the function that runs them."""

from __future__ import annotations

from torch.export import ExportedProgram

from samforge.core.targets import target_from_name
from samforge.transform.fuse.attention import ATTENTION
from samforge.transform.fuse.attention_scale import ATTENTION_SCALE
from samforge.transform.fuse.constants import CONSTANTS, LARGE_CONSTANTS
from samforge.transform.fuse.duplicates import DUPLICATES
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.noops import NOOPS
from samforge.transform.fuse.parallel_linears import PARALLEL_LINEARS
from samforge.transform.fuse.reshapes import STATIC_RESHAPES
from samforge.transform.fuse.result import FusedProgram, Fusion, FusionCount, FusionResult
from samforge.transform.fuse.rotary import ROTARY
from samforge.transform.fuse.scales import SCALES
from samforge.transform.fuse.window_order import WINDOW_ORDER

FUSIONS: tuple[Fusion, ...] = (
    NOOPS,
    STATIC_RESHAPES,
    ROTARY,
    LARGE_CONSTANTS,
    CONSTANTS,
    DUPLICATES,
    ATTENTION,
    WINDOW_ORDER,
    SCALES,
    ATTENTION_SCALE,
    PARALLEL_LINEARS,
)
"""In the order they run: each clears the view for those behind it."""


def fuse(program: ExportedProgram, *, target: str, consume: bool = False) -> FusedProgram:
    """Rewrite a program into fewer, larger operators that compute the same.

    Args:
        program: From :func:`samforge.transform.export.exported_from_part`, or any program that
            torch.export made of a module in eval mode.
        target: Where it will run, one of ``samforge.core.targets.TARGETS``: not every fusion helps
            everywhere.
        consume: Free each tensor of ``program`` once its replacement exists. The program is of no
            use afterwards, and neither is a module that shares its weights; at real size this saves
            the memory of every merged weight.

    Returns:
        A program with the same inputs, outputs and dynamic axes, and what was done. Tensors that no
        fusion touched are shared with ``program``.

    Raises:
        SettingError: There is no such target.
    """
    target_from_name(target)
    editor = GraphEditor(program, consume=consume)
    obstacle = editor.obstacle
    stored = editor.tensors
    editor.sweep()
    unread = tuple(sorted(stored.keys() - editor.tensors.keys()))
    results = []
    for fusion in FUSIONS:
        if target not in fusion.targets:
            continue
        stored = editor.tensors
        tally = (
            FusionCount(left=[f"whole program: {obstacle}"]) if obstacle else fusion.apply(editor)
        )
        left = editor.tensors
        results.append(
            FusionResult(
                name=fusion.name,
                fired=tally.fired,
                left=tuple(tally.left),
                exact=fusion.exact,
                weights=tuple(name for name in stored if left.get(name) is not stored[name]),
            )
        )
    return FusedProgram(program=editor.program(), results=tuple(results), unread=unread)
