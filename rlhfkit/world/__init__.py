"""The small generated world of `rlhfkit init`: its questions, its people and its gold score.

gold.py is the program that scores answers (copied into the repository that `init` writes), grammar.py asks
and answers questions, people.py makes the users, the demonstrator and the pretraining text, and files/
holds what is copied as it stands. Nothing here imports torch.
"""
