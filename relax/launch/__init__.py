"""What the scripts share between their flags and their trainer.

flags      bundles of flags, in which a script names what it takes; light, for ``--help``
choices    what can be decided or refused before anything is loaded
loading    model, tokenizer, critic and rows
job        the end: train or rehearse, and say what came of it

For reinforcement learning:

rewarded         prompts, rewards, and which figure says what is best
backbone_reward  a reward model that is an adapter of the policy's base
policy_run       all of it, in the order in which it is decided and loaded
"""
