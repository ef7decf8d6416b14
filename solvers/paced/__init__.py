"""Shares on the ranks of a pipeline: the busiest rank, or what ranks share, sets the pace of every micro-batch."""
