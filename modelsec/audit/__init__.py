"""The audit card: one model in, one report out.

Each section measures one thing and registers itself; every chapter of the book adds one.
"""

from modelsec.audit import (  # noqa: F401  (importing registers sections)
    accuracy,
    adaptive,
    auto,
    backdoor,
    black_box,
    certified,
    data,
    evasion,
    membership,
    minimum_norm,
    overfitting,
    reliability,
    sanity,
    spatial,
    validation,
)
from modelsec.audit.parts import Section, Subject, section, sections
from modelsec.audit.report import Report
from modelsec.audit.run import audit, checklist
from modelsec.audit.table import audit_table

__all__ = [
    "Report",
    "Section",
    "Subject",
    "audit",
    "audit_table",
    "checklist",
    "section",
    "sections",
]
