"""The follower placement problem and its solvers: items of successive layers that follow one another, onto bins."""
