"""PDM: the text of an identity is read off its images by textual inversion (arXiv 2511.05092).

CLIP-ReID's two stages without learned tokens of identities: two small networks turn the feature of an image into
pseudo-words for its content and its style, which stand in sentences. Images are pulled to the content text of their
identity.

    accelerate launch recipes/pdm.py --output runs/pdm
    accelerate launch recipes/pdm.py --targets image                 # pulled to the texts of images, not of identities
    accelerate launch recipes/pdm.py --style set --data market1501:/data/Market --data msmt17:/data/MSMT17

Controls:

    accelerate launch recipes/pdm.py --prompts identity              # learned tokens per identity: CLIP-ReID
    accelerate launch recipes/pdm.py --prompts none                  # no text
    accelerate launch recipes/pdm.py --style none                    # no style network
    accelerate launch recipes/pdm.py --weight-disentangle 0          # one that does not reach the content

Reference results: none yet.

The whole method is `clipreid/methods/pdm.py`.
"""

from clipreid.methods import pdm
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(pdm, __doc__)
