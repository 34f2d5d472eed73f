"""IRRA: find images with sentences, by training both towers on the captions of the images (arXiv 2303.12501).

Similarity distribution matching, identity loss of images and texts, and hidden words that are found with the help of
the image. Without flags it trains on the street's captions, and scores sentences that look for images
(synthetic:captions) and images that look for images (synthetic).

    accelerate launch recipes/irra.py --output runs/irra
    accelerate launch recipes/irra.py --data cuhk-pedes:/data/CUHK-PEDES --backbone open_clip:ViT-B-16-quickgelu/openai
    accelerate launch recipes/irra.py --data icfg-pedes:/data/ICFG-PEDES --preset paper     # as published: all weights
    accelerate launch recipes/irra.py --data csv:my.csv                                     # with a column caption

Parts and controls:

    accelerate launch recipes/irra.py --weight-mlm 0               # without hidden words
    accelerate launch recipes/irra.py --weight-sdm 0               # without similarity distribution matching
    accelerate launch recipes/irra.py --weight-sdm 0 --weight-mlm 0 --weight-id 0 --weight-itc 1    # CLIP's own loss
    accelerate launch recipes/irra.py --text-tuning frozen         # the text tower stays as it is

The trained text tower is used by `clipreid search RUN --text "..."` and `clipreid evaluate RUN`.

Reference results, a short check with one seed (`--epochs 1 --rate 1e-3`, tiny-clip, 2.5 minutes of one CPU core), mAP /
rank-1 in percent: sentences find images (synthetic:captions) 70.1 / 89.2, before training 63.1 / 93.5; images find
images (synthetic) 41.7 / 49.0, before training 31.9 / 43.3. More in docs/methods/irra.md.

The whole method is `clipreid/methods/irra.py`.
"""

from clipreid.methods import irra
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(irra, __doc__)
