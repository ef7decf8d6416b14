"""What a profile should measure for a spec, and whole layers beside the sum of their parts."""
