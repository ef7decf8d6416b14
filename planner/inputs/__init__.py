"""What a user hands in, read and checked against one another."""
