"""Terminal, files and exit codes."""
