"""The studies behind the book's long results, one module a chapter."""
