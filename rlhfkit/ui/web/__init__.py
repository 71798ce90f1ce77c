"""The ranking page: a small server for one person on this machine."""
