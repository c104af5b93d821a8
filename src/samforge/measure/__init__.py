"""Latency, fidelity and accuracy of sessions and segmenters."""

from samforge.core.manifest import PICTURES_NAME, PROOF_NAME
from samforge.measure.accuracy import Accuracy
from samforge.measure.batches import PartsAlone
from samforge.measure.cgf1 import CgF1
from samforge.measure.gates import (
    check_cgf1,
    check_predictions,
    feature_cosine_limit,
    limit_of,
    mask_iou_limit,
)
from samforge.measure.latency import (
    Budget,
    Latency,
    StageLatency,
    Subject,
    latency_from_samples,
    measure_in_turn,
)
from samforge.measure.mesh import (
    BodyMesh,
    Deviation,
    MeshComparison,
    Regions,
    compare_meshes,
    mesh_from_file,
    regions_from_file,
    root_relative_mm,
    save_people,
)
from samforge.measure.odd import OddPicture, failed_odd, odd_limits, odd_pictures
from samforge.measure.predictions import (
    PredictionFidelity,
    compare_detections,
    compare_predictions,
    in_reference_order,
)
from samforge.measure.proof import (
    ProvenTensor,
    check_proof,
    proof_inputs,
    proven_tensors,
    write_proof,
)
from samforge.measure.proof_pictures import (
    ProofPictures,
    check_proof_pictures,
    proof_pictures_from_file,
    write_proof_pictures,
)
from samforge.measure.segmentation import SegmenterAccuracy, measure_segmenter
from samforge.measure.verdict import Judged, Verdict, check_verdict
from samforge.measure.video_accuracy import VideoAccuracy, VideoVerdict, WayAccuracy
from samforge.measure.witness import Witness, finite

__all__ = [
    "PICTURES_NAME",
    "PROOF_NAME",
    "Accuracy",
    "BodyMesh",
    "Budget",
    "CgF1",
    "Deviation",
    "Judged",
    "Latency",
    "MeshComparison",
    "OddPicture",
    "PartsAlone",
    "PredictionFidelity",
    "ProofPictures",
    "ProvenTensor",
    "Regions",
    "SegmenterAccuracy",
    "StageLatency",
    "Subject",
    "Verdict",
    "VideoAccuracy",
    "VideoVerdict",
    "WayAccuracy",
    "Witness",
    "check_cgf1",
    "check_predictions",
    "check_proof",
    "check_proof_pictures",
    "check_verdict",
    "compare_detections",
    "compare_meshes",
    "compare_predictions",
    "failed_odd",
    "feature_cosine_limit",
    "finite",
    "in_reference_order",
    "latency_from_samples",
    "limit_of",
    "mask_iou_limit",
    "measure_in_turn",
    "measure_segmenter",
    "mesh_from_file",
    "odd_limits",
    "odd_pictures",
    "proof_inputs",
    "proof_pictures_from_file",
    "proven_tensors",
    "regions_from_file",
    "root_relative_mm",
    "save_people",
    "write_proof",
    "write_proof_pictures",
]
