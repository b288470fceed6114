"""Validation: does a model recognise what it should, how sure may we be, and may it be released?

One module a question. Scores of shift grow as an input looks stranger, for every one of them.
"""

from modelsec.validation.corruption_report import CorruptionReport, corruption_report
from modelsec.validation.corruptions import KINDS, Corruption, corrupt, corruption_table

__all__ = [
    "KINDS",
    "Corruption",
    "CorruptionReport",
    "corrupt",
    "corruption_report",
    "corruption_table",
]
