"""What one rank of a layout holds, runs and sends, and what its steps cost."""
