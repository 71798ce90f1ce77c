"""Small stages, one per way in which a command can behave."""
