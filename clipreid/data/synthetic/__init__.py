"""The synthetic street: procedurally painted pedestrians with true captions, for trying everything offline.

    python -m clipreid.data.synthetic --sheet out.png      # look at it

`people` says who there is, `wardrobe` and `figure` paint them, `scenes` and `camera` are where and how they are
seen, `street` makes the named sets, `pretraining` the captioned images for the tiny backbones.
"""

from clipreid.data.synthetic.street import SETS, load_synthetic

__all__ = ["SETS", "load_synthetic"]
