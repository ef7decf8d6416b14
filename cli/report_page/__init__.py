"""A plan as one page of HTML that opens from disk: no network, no script, the same bytes each time."""
