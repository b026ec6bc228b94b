"""What the scripts share between their flags and their trainer.

flags      bundles of flags, in which a script names what it takes; light, for ``--help``
choices    what can be decided or refused before anything is loaded
loading    model, tokenizer and rows
rewarded   for reinforcement learning: prompts, rewards, and what watches them
"""
