"""Speed and correctness side by side with other libraries: ``make bench``."""
