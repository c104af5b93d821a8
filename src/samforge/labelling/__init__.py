"""Data sets from what you have: an ontology, a source, and labels that nothing loses."""

from samforge.labelling.doubt import RankedPicture, ScoreHistogram
from samforge.labelling.items import SourceError
from samforge.labelling.ledger import OtherRun
from samforge.labelling.ontology import OVERLAPS, ExemplarBoxes, LabelClass, Ontology
from samforge.labelling.outcome import ItemFailure
from samforge.labelling.review import ReviewResult, review_labels
from samforge.labelling.run import label, plan_labels
from samforge.labelling.settings import LabelPlan, LabelResult, LabelSettings, Watch

__all__ = [
    "OVERLAPS",
    "ExemplarBoxes",
    "ItemFailure",
    "LabelClass",
    "LabelPlan",
    "LabelResult",
    "LabelSettings",
    "Ontology",
    "OtherRun",
    "RankedPicture",
    "ReviewResult",
    "ScoreHistogram",
    "SourceError",
    "Watch",
    "label",
    "plan_labels",
    "review_labels",
]
