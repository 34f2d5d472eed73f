"""CLIP-ReID in two stages: learn a prompt per identity, then adapt the image tower towards the learned texts.

Stage 1 runs first unless the run folder holds it already. What comes out: a run folder with `adapter/` (plain peft),
`heads.safetensors`, `metrics.json`, `log.jsonl`; load it with `clipreid.load(folder)`.

    accelerate launch recipes/clipreid_stage2.py                      # the embedded default, offline, minutes
    accelerate launch recipes/clipreid_stage2.py --data folder:/my/crops --output runs/mine
    accelerate launch recipes/clipreid_stage2.py --data market1501:/data/Market-1501 \\
        --backbone open_clip:ViT-B-16-quickgelu/openai --output runs/market
    accelerate launch recipes/clipreid_stage2.py --data market1501:/data/Market-1501 --data msmt17:/data/MSMT17 \\
        --test ltcc:/data/LTCC_ReID                                   # on two data sets, tested on these and a third
    accelerate launch recipes/clipreid_stage2.py --prompts none       # the control: the same recipe without text
    accelerate launch recipes/clipreid_stage2.py --preset paper       # the published settings

The whole method, with its losses and settings, is `clipreid/methods/clip_reid.py`.

Reference results (tiny-clip, three seeds, one thread): mAP on `synthetic` 31.9 % zero-shot -> 62.3 % (61.4 to 63.1); on
unseen cameras (`synthetic:new-cameras`) 50.7 % -> 52.5 % (51.5 to 53.2), hardly beyond chance. They check mechanisms,
and are no evidence about pedestrians.
"""

from clipreid.methods import clip_reid
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(clip_reid, __doc__)
