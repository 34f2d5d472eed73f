"""DPL-ReID: two texts per identity, with and without an occluder, for occluded images (arXiv 2605.19527).

CLIP-ReID's two stages on clean and occluded views of every training image. Identity prompts and occluder prompts share
the tokens of the identity; occluders are pasted into the images; a small CNN can gate the tower's feature (WGFF). At
test there are image features only, as in CLIP-ReID.

    accelerate launch recipes/dpl.py --test synthetic:occluded --output runs/dpl
    accelerate launch recipes/dpl.py --occluder-folder cutouts/              # your own occluders, a folder per class
    accelerate launch recipes/dpl.py --occluder-tokens-per class             # tokens of each class of occluders
    accelerate launch recipes/dpl.py --weight-consistency 1                  # both views close to each other
    accelerate launch recipes/dpl.py --fusion gated                          # with a CNN, from random weights
    accelerate launch recipes/dpl.py --fusion gated --partner repvit_m0_9.dist_450e_in1k    # from timm's weights

Controls, each with as many images in a batch:

    accelerate launch recipes/dpl.py --prompts identity                      # the same occluders, one text
    accelerate launch recipes/dpl.py --prompts identity --occluders none     # random erasing alone
    accelerate launch recipes/dpl.py --prompts none                          # the same occluders, no text
    accelerate launch recipes/dpl.py --fusion concat                         # of --fusion gated: the same CNN, no gate

A batch holds every image twice, so a step takes twice as long as one of recipes/clipreid_stage2.py. The occluders of
training and those of the set synthetic:occluded are of different classes.

The whole method is `clipreid/methods/dpl.py`.
"""

from clipreid.methods import dpl
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(dpl, __doc__)
