"""Published miscompiles and slow paths of TensorRT, as rules over an ONNX graph.

``lint`` needs neither a GPU nor TensorRT. What it finds is known from the issue it names; that it
finds nothing proves nothing: only a comparison of outputs does.
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.transform.onnx.hazards import attention, operators, quantization
from samforge.transform.onnx.hazards.rule import SEVERITIES, Rule
from samforge.transform.summary import Finding

__all__ = ["RULES", "SEVERITIES", "Finding", "Rule", "lint"]

RULES: tuple[Rule, ...] = (*operators.RULES, *attention.RULES, *quantization.RULES)
"""Every rule."""


def lint(model: ir.Model) -> tuple[Finding, ...]:
    """Run every rule over a graph; weights are not loaded.

    Returns:
        What was found, silently wrong results first.
    """
    findings = []
    for rule in RULES:
        places = tuple(rule.find(model))
        if places:
            findings.append(
                Finding(
                    rule=rule.id,
                    severity=rule.severity,
                    places=places,
                    explanation=rule.explanation,
                    reference=rule.reference,
                )
            )
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
