"""What is measured, one module a suite; only code here and in `timing`, `provenance` and `ranks` imports torch."""
