"""Measures what the planner needs, on the machine that it runs on: `python -m profiles.measure --help`.

This folder can be copied to a bare training image and run there (keep the path `profiles/measure` and put its parent
on PYTHONPATH): it needs Python, torch and numpy, and nothing of the rest of the project. `points`, `journal` and
`budget` need not even torch; the planner's side reads journals through them.
"""
