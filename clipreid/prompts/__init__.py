"""From learned tokens and words to text features, through a text tower."""

from clipreid.prompts.identity import IdentityPrompts
from clipreid.prompts.template import Template, word_embeddings

__all__ = ["IdentityPrompts", "Template", "word_embeddings"]
