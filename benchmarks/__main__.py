"""``python -m benchmarks``: run all of them."""

from benchmarks import gradient

gradient.main()
