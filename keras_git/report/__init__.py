"""What an audit found, for a person: sentences, one self-contained HTML file, pictures."""

from __future__ import annotations

from keras_git.report.factors import write_factors_html
from keras_git.report.figures import pictures
from keras_git.report.html import write_html
from keras_git.report.sentences import Finding, findings, sentences

__all__ = ["Finding", "findings", "pictures", "sentences", "write_factors_html", "write_html"]
