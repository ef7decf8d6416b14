"""The replica placement problem and its solvers: weighted items, with copies, onto the slots of bins."""
