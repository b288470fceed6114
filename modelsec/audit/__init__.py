"""The audit card: one model in, one report out.

Each section measures one thing and registers itself; every chapter of the book adds one.
"""

from modelsec.audit import accuracy, data, evasion, sanity, validation  # noqa: F401  (importing registers sections)
from modelsec.audit.parts import Section, Subject, section, sections
from modelsec.audit.report import Report
from modelsec.audit.run import audit

__all__ = ["Report", "Section", "Subject", "audit", "section", "sections"]
