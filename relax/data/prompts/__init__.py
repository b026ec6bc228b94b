"""From user data to tokenized prompts, each with the row that its answers are scored by. Samples nothing."""

from relax.data.prompts.dataset import EncodedPrompt, PromptDataset, PromptReport
from relax.data.prompts.encoding import encode_prompt, encode_prompts
from relax.data.prompts.reading import reward_columns
from relax.data.prompts.walk import PromptWalk

__all__ = [
    "EncodedPrompt",
    "PromptDataset",
    "PromptReport",
    "PromptWalk",
    "encode_prompt",
    "encode_prompts",
    "reward_columns",
]
