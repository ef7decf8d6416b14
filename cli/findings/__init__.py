"""Findings in each form that people and machines read: one form a file, each a function from `Judged` to text."""
