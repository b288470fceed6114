"""Validation: does a model recognise what it should, how sure may we be, and may it be released?

One module a question. Scores of shift grow as an input looks stranger, for every one of them.
"""
