"""The frameworks that plans are written for: their files, and the command that starts them."""
