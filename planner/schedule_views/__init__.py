"""Schedules as one sees them: traces, and what those that the target lacks would cost."""
