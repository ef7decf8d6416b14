"""What is decided by searching more than once: nodes, deadlines, fronts, the worst case, what losses leave."""
