"""Token hooks at the layers of an image tower: what changes its tokens by what is known of the images."""

from clipreid.hooks.base import TokenHook

__all__ = ["TokenHook"]
