"""One model that images and sentences look for images with: the image tower first, then the text tower towards it.

The image tower is trained as in CLIP-ReID; then it stays as it is, and the text tower learns from the captions of the
training images (arXiv 2606.02242). Without flags it trains on the street, of which one half has captions, and scores
images that look for images and sentences that do.

    accelerate launch recipes/joint.py --output runs/joint
    accelerate launch recipes/joint.py --order text --init runs/demo --data synthetic:captions  # of a trained run
    accelerate launch recipes/joint.py --data market1501:/data/Market --data cuhk-pedes:/data/CUHK-PEDES

Controls:

    accelerate launch recipes/joint.py --order together                     # both towers, all losses, in one stage
    accelerate launch recipes/joint.py --order together --compare apart     # the projection is left to the texts
    accelerate launch recipes/joint.py --order image                        # the text tower stays as it is
    accelerate launch recipes/joint.py --order text                         # the image tower stays as it is
    accelerate launch recipes/joint.py --prompts none                       # no text while the image tower is trained
    accelerate launch recipes/joint.py --prompts none --weight-captions 1   # the captions instead

`clipreid search RUN --text "..."` and `clipreid evaluate RUN` use the trained text tower.

The whole method is `clipreid/methods/joint.py`.
"""

from clipreid.methods import joint
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(joint, __doc__)
