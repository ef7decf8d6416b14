"""What is asked of a serving plan, what its layouts are, and what it says."""
