"""The command line: each command parses, calls one function and prints. No logic, and nothing heavy at import."""
