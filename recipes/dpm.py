"""DPM++: a mask over the dimensions of the feature, for occluded queries (arXiv 2605.06637; DPM, ACM MM 2022).

    accelerate launch recipes/dpm.py
    accelerate launch recipes/dpm.py --mask published                  # three convolutions instead of a low-rank map
    accelerate launch recipes/dpm.py --mask none                       # the control: no mask, compared by cosine
    accelerate launch recipes/dpm.py --prompts none                    # DPM: without text
    accelerate launch recipes/dpm.py --weight-relation 0               # text, but not in the prototypes
    accelerate launch recipes/dpm.py --patch-transfer 0.5              # patches around other images' persons
    accelerate launch recipes/dpm.py --no-alternate                    # one optimiser instead of two that take turns

`clipreid evaluate` shows the masked metric (`concat`) beside the plain cosine of the same feature (`final`). Every step
takes two forwards of the tower, the second one without gradient for it.

The whole method is `clipreid/methods/dpm.py`; the mask is `clipreid/aggregation/mask_generator.py`, the metric
`clipreid/metric.py`, patch transfer `clipreid/hooks/patch_transfer.py`.

Reference results: none yet.
"""

from clipreid.methods import dpm
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(dpm, __doc__)
