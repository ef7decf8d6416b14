"""The search: every layout that the target can run, bounded, visited in order of its bound, and proved.

`search.space` lists the points, `search.bounds` bounds them all at once, `search.splits` deals layers to the stages of
one point after another and prices that exactly; `search.visit` goes through them in order, and `search.search` is the
main path.
"""
