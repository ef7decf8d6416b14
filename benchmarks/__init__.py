"""Programs that measure the search and hold it against independent counts, exhaustive search and random layouts."""
