"""Audit of any classifier: to what it is invariant, and on which classes it is not."""

from __future__ import annotations

from keras_git.auditing.audit import audit
from keras_git.auditing.classifier import (
    PREPROCESSING,
    Classifier,
    Preprocessing,
    load_classifier,
    open_classifier,
)
from keras_git.auditing.data import LabelledImages, open_data
from keras_git.auditing.result import (
    AuditResult,
    Condition,
    Example,
    Measurement,
    ModelAudit,
    Trend,
    join_results,
)
from keras_git.auditing.statistics import spearman_trend

__all__ = [
    "PREPROCESSING",
    "AuditResult",
    "Classifier",
    "Condition",
    "Example",
    "LabelledImages",
    "Measurement",
    "ModelAudit",
    "Preprocessing",
    "Trend",
    "audit",
    "join_results",
    "load_classifier",
    "open_classifier",
    "open_data",
    "spearman_trend",
]
