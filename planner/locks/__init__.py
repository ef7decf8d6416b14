"""What a plan's lock file pins, and what has changed since."""
