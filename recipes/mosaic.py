"""MoSAIC-ReID: a LoRA expert for every attribute, chosen by the true attributes of the image (arXiv 2512.08697).

An analysis, no way to a better figure: attributes are the same for all images of an individual, so the oracle leaks its
identity. Which attributes matter is measured by recipes/mosaic_analysis.py.

    accelerate launch recipes/mosaic.py --output runs/mosaic
    accelerate launch recipes/mosaic.py --experts attribute            # one for each attribute, whatever its value
    accelerate launch recipes/mosaic.py --data market1501:/data/Market-1501 --backbone hf:openai/clip-vit-base-patch16
    python recipes/mosaic_analysis.py --run runs/mosaic --output studies/mosaic

The street knows its people's attributes; Market-1501 gets them from market_attribute.mat in its folder, other data
from columns attribute.NAME or from a file attributes.csv (docs/data.md).

The whole method is `clipreid/methods/mosaic.py`; the experts are `clipreid/hooks/experts.py`.

Reference results: none yet of a whole training; a short check is described in docs/methods/mosaic.md.
"""

from clipreid.methods import mosaic
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(mosaic, __doc__)
