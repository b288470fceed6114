"""Speed side by side with other libraries: ``make bench``.

``libraries`` wraps the attacks of each library alike, ``timing`` lets them run in turn, ``tasks``
says what is measured, and ``page`` makes the book's page out of the stored results.
"""
