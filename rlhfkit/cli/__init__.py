"""The command line: settings to flags, streams, signals, exit codes."""
