"""Data sets from what you have: an ontology, a source, and labels that nothing loses."""

from samforge.labelling.doubt import RankedPicture, ScoreHistogram
from samforge.labelling.engine import Chunk, Engine, labelled
from samforge.labelling.engines import MakeEngine, local_engine
from samforge.labelling.items import SourceError
from samforge.labelling.labeller import Labeller
from samforge.labelling.ledger import OtherRun
from samforge.labelling.ontology import OVERLAPS, ExemplarBoxes, LabelClass, Ontology
from samforge.labelling.opening import Opening
from samforge.labelling.outcome import ItemFailure, Outcome
from samforge.labelling.review import ReviewResult, review_labels
from samforge.labelling.run import label, plan_labels
from samforge.labelling.settings import LabelPlan, LabelResult, LabelSettings, Watch

__all__ = [
    "OVERLAPS",
    "Chunk",
    "Engine",
    "ExemplarBoxes",
    "ItemFailure",
    "LabelClass",
    "LabelPlan",
    "LabelResult",
    "LabelSettings",
    "Labeller",
    "MakeEngine",
    "Ontology",
    "Opening",
    "OtherRun",
    "Outcome",
    "RankedPicture",
    "ReviewResult",
    "ScoreHistogram",
    "SourceError",
    "Watch",
    "label",
    "labelled",
    "local_engine",
    "plan_labels",
    "review_labels",
]
