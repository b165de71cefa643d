"""The schema of every result file of a pipeline run: one module for the files of a stage."""

from trl.results.attack import WORST, AttackResult, CurvePoint, FurtherThreat, Passes
from trl.results.base import Accuracy, Document, Row
from trl.results.certify import CertifiedPoint, CertifyResult
from trl.results.detect import (
    ADAPTIVE,
    DetectionPoint,
    DetectorFigures,
    DetectResult,
    Figure,
    Figures,
    Neighbours,
    Rejection,
    Representation,
    RocPoint,
    ScoreBin,
    Subset,
    Subsets,
    TsnePoint,
    Validation,
)
from trl.results.ensemble import Difference, EnsembleResult, Fooled, Together
from trl.results.load import ModelResults, Results, collect, load_model_results, load_results
from trl.results.proxy import ArcResult, Distances, MixResult, ProxyResult
from trl.results.train import Epoch, TrainResult

__all__ = [
    "ADAPTIVE",
    "WORST",
    "Accuracy",
    "ArcResult",
    "AttackResult",
    "CertifiedPoint",
    "CertifyResult",
    "CurvePoint",
    "DetectResult",
    "DetectionPoint",
    "DetectorFigures",
    "Difference",
    "Distances",
    "Document",
    "EnsembleResult",
    "Epoch",
    "Figure",
    "Figures",
    "Fooled",
    "FurtherThreat",
    "MixResult",
    "ModelResults",
    "Neighbours",
    "Passes",
    "ProxyResult",
    "Rejection",
    "Representation",
    "Results",
    "RocPoint",
    "Row",
    "ScoreBin",
    "Subset",
    "Subsets",
    "Together",
    "TrainResult",
    "TsnePoint",
    "Validation",
    "collect",
    "load_model_results",
    "load_results",
]
