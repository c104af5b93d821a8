"""Whose SAM 3 a bundle computes: the reference that every gate holds it to.

Meta's public code and transformers' ``Sam3Model`` compute different things with the same weights;
docs/what-equals-what.md tells the five differences with figures. Weights that Meta published, on
Hugging Face too, were trained and measured with Meta's code. Weights that were fine-tuned in
transformers know only transformers'.
"""

from __future__ import annotations

META = "meta"
"""SAM 3 as Meta runs it."""
TRANSFORMERS = "transformers"
"""What transformers' stock ``Sam3Model`` and its image processor compute."""
REFERENCES = (META, TRANSFORMERS)
"""The default first."""
REFERENCE_WORDS = {
    META: "SAM 3 as Meta's code computes it",
    TRANSFORMERS: "what transformers' Sam3Model computes",
}
"""For people."""
