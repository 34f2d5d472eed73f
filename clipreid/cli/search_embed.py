"""`--embed` of `clipreid search`: the gallery is made first, or continued, or found to be there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.cli.search import Search
    from clipreid.model import ReIDModel


def embed_first(flags: Search) -> ReIDModel:
    """Embeds images into --gallery, and says so on stderr; returns the model, for the search.

    Raises:
        UserError: as `clipreid embed`.
    """
    from clipreid.cli.search import progress, summary
    from clipreid.search import embed, find_images
    from clipreid.search.embedding import LARGEST, check_request

    try:
        check_request(flags.gallery, LARGEST)
        images = find_images(flags.embed)
        model = flags.load()
        done = embed(
            model,
            images,
            flags.gallery,
            run=flags.run,
            sources=flags.embed,
            overwrite=flags.overwrite,
            threads=flags.threads,
            progress=progress(),
        )
    except UserError as error:  # there the flag has another name
        raise UserError(str(error).replace("--output ", "--gallery ")) from error
    print(summary(done, flags.gallery, model), file=sys.stderr, flush=True)
    return model
