"""One module per command: its docstring is the help, its Config the flags, run() the work."""
