"""The maths of language modelling, preferences and PPO."""
