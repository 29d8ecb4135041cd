"""Audit of any classifier: to what it is invariant, and on which classes it is not."""

from __future__ import annotations

from keras_git.auditing.result import (
    AuditResult,
    Condition,
    Example,
    Measurement,
    ModelAudit,
    Trend,
)

__all__ = ["AuditResult", "Condition", "Example", "Measurement", "ModelAudit", "Trend"]
