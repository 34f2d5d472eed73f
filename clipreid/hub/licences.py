"""The licences of the backbones' weights, as those who published them state it."""

from __future__ import annotations

import re

# what a backbone's name says -> the Hub's identifier of the licence, and its name where the Hub has none for it
KNOWN: tuple[tuple[str, str, str], ...] = (
    (r"tiny-(clip|siglip2)", "apache-2.0", ""),
    (r"open_clip:[^/]+/(openai|laion.*|datacomp.*|commonpool.*)", "mit", ""),
    (r"open_clip:[^/]+/webli", "apache-2.0", ""),  # SigLIP, SigLIP2
    (r"open_clip:[^/]+/metaclip.*", "cc-by-nc-4.0", ""),
    (r"open_clip:[^/]+/dfn.*", "other", "apple-amlr"),
    (r"hf:(openai/clip-.*|laion/CLIP-.*)", "mit", ""),  # OpenAI: by its repository, its Hub pages name none
    (r"hf:google/siglip.*", "apache-2.0", ""),
    (r"timm:.*(dinov3).*", "other", "dinov3-license"),
    (r"timm:.*(dinov2|vit_pe_|augreg).*", "apache-2.0", ""),
    (r"timm:eva02.*", "mit", ""),
)


def licence_of(backbone: str) -> tuple[str, str]:
    """(the Hub's identifier, a name where that is "other") for a backbone's public name; ("unknown", "") else."""
    for pattern, identifier, name in KNOWN:
        if re.fullmatch(pattern, backbone):
            return identifier, name
    return "unknown", ""
