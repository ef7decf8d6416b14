"""Expert placement: from counts of how often each expert is chosen to which expert stands on which GPU."""
