"""Reward models, language models, programs and endpoints that score completions."""
