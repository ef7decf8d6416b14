"""Clusters as other programs describe them: what a file says, and the cluster file made of what several say."""
