"""Rules that files for a framework must obey: one subject a file, each rule with its id, its text and its source."""
