"""From identities to text features, through a frozen text tower."""

from clipreid.prompts.identity import IdentityPrompts

__all__ = ["IdentityPrompts"]
