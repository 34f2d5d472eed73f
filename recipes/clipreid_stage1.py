"""Stage 1 of CLIP-ReID: learn a few prompt tokens for every identity, both encoders frozen.

    accelerate launch recipes/clipreid_stage1.py
    accelerate launch recipes/clipreid_stage1.py --data market1501:/data/Market-1501 \\
        --backbone open_clip:ViT-B-16-quickgelu/openai --output runs/market

What comes out: `identities.safetensors` in the run folder, with the prompts [I, M, W] and the text bank [I, E].
`clipreid_stage2.py` with the same --output continues from there; it also runs this stage itself when there is none.
"""

from clipreid.methods import clip_reid
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(clip_reid, __doc__, until="stage1")
