"""Token hooks: what is added to, dropped from or changed in the tokens inside an image tower.

B images, T tokens (CLS first, where the tower has one), C tower width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from clipreid.errors import UserError


class TokenHook(nn.Module):
    """A module that the image tower asks around every block. A subclass overrides `before`, `after`, or both.

    Several hooks are asked in their order in front of a block and in reverse order behind it: the last one in is the
    first out, so that each finds what it inserted where it put it.

    `about` holds what is known of the images, by name: in training everything that the batches of a method carry but
    "pixels" ("labels", "rows", "cameras", "views", keys of its own); at test "cameras" and "views" [B] long, -1 =
    unknown, and "attributes" [B, A, 2], where they are given, else nothing ({}).

    Attributes:
        reads: what users are to give at test, of "cameras", "views" and "attributes" (`model.embed(images,
            cameras=...)`); other names are refused by `ReIDModel`. Keys of a training batch need not be named.
        strength: from 0 (as if the hook were not there) to 1 (as trained); `clipreid.strength` sets it.
    """

    reads: tuple[str, ...] = ()
    strength: float = 1.0

    def reset_parameters(self) -> None:
        """Draws the initial values; `ReIDModel` calls it, so that they follow the seed in a fixed order."""

    def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        """Tokens [B, T, C] in front of a block to what takes their place.

        layer: 0 for the embedded tokens with positions, before CLIP's pre-norm; i for the input of block i = 1, 2, ...
            (1: after the pre-norm). Tokens are inserted or changed here. The first token of CLIP stays CLS.
        """
        return x

    def after(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        """Tokens [B, T, C] that block `layer` = 1, 2, ... returned, to what goes on; taps are read behind this.

        What `before` inserted is removed here, unless it is to be seen by the aggregator.
        """
        return x

    def bake(self, tower: nn.Module) -> None:
        """Puts what the hook does to images of which nothing is known into the weights of `tower`, for exports.

        Raises:
            UserError: this kind of hook cannot be part of a tower's weights.
        """
        raise UserError(f"{type(self).__name__} works inside the tower and cannot be merged into its weights")
