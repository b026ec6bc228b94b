"""The start-up audit of a data set: what is trained on what, told before a run spends hours on it."""

from relax.data.audit.advice import warnings_of
from relax.data.audit.figures import Audit, audit
from relax.data.audit.folder import TEXT_FILE, save_audit
from relax.data.audit.text import LOG_WIDTH, audit_lines

__all__ = ["LOG_WIDTH", "TEXT_FILE", "Audit", "audit", "audit_lines", "save_audit", "warnings_of"]
