# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own crops
#
# From a folder of images to an adapter that could be published: check, train, evaluate, look at the mistakes, see
# what would be uploaded. Every step is a command that you can type in a terminal just as well.
#
# What you need is crops: one individual in each image, cut out. Put them like this, and nothing has to be configured:
#
#     crops/train/anna/cam1_00001.png        to learn from
#     crops/test/bert/cam3_00007.png         other individuals, to be measured on
#
# Identity and camera are read from folders and file names; other ways: `docs/own-images.md`. Two images of an
# individual are the least, from different cameras where there are several.
#
# Start Jupyter with `CROPS=/my/crops` in the environment, and this notebook is about yours. Otherwise it paints a small
# folder of people who do not exist.

# %%
# %matplotlib inline
import os
from pathlib import Path

from IPython.display import Image, display

import clipreid
from clipreid import explore
from clipreid.reports import ranked_lists

if not Path("recipes").is_dir():
    os.chdir("..")  # commands are typed in the repository, folders are below it
CROPS = Path(os.environ.setdefault("CROPS", "runs/crops"))
RUN = Path(os.environ.setdefault("RUN", f"{CROPS}-run"))

if not CROPS.exists():
    print(f"there is no {CROPS}: people are painted, to be put there")
    street = clipreid.load_data("synthetic").splits
    train, test = explore.few(street["train"], 6, identities=60), explore.few(street["gallery"], 6, identities=40)
    explore.write_folder({"train": train, "test": test}, CROPS)
    whole = sorted(CROPS.glob("train/*/*.png"))[7]
    spoiled = whole.rename(whole.with_stem(f"{whole.stem}_broken_off"))
    spoiled.write_bytes(spoiled.read_bytes()[:2000])  # a copy that broke off

# %% [markdown]
# ## Check
#
# Before anything is trained: is every image readable, does every individual have enough of them, is nobody in both
# parts, did an image get in twice?

# %% language="bash"
# clipreid data check "folder:$CROPS" || echo "(to be fixed)"

# %% [markdown]
# One file of the painted folder is a copy that broke off. Mend what was found, and check again. (Or train with
# `--skip-bad`, which leaves such images out and counts them.)

# %%
for spoiled in CROPS.glob("train/*/*_broken_off.png"):
    spoiled.unlink()

# %% language="bash"
# clipreid data check "folder:$CROPS"

# %% [markdown]
# ## Train
#
# Both stages, then the scores before and after. Small data gets more epochs by default, until there are 180 steps of
# the optimiser; here it is stopped after a few, so that you need not wait. For real images name a real backbone, such
# as `--backbone open_clip:ViT-B-16-quickgelu/openai`, and leave `--prompt-epochs` and `--epochs` out.

# %% language="bash"
# test -f "$RUN/heads.safetensors" ||
#     accelerate launch recipes/clipreid_stage2.py --data "folder:$CROPS" --output "$RUN" --prompt-epochs 12 --epochs 4

# %% [markdown]
# ## Evaluate
#
# The figures with their intervals, and a page to look at: `report/index.html` in the run folder shows ranked lists,
# where the model looked, and the identity of confused with whom.

# %% language="bash"
# clipreid evaluate "$RUN" --data "folder:$CROPS" --report "$RUN/report"

# %%
display(Image(RUN / "report" / "ranked_lists.png"))

# %% [markdown]
# ## Look at the mistakes
#
# A mean hides them. These are the queries with the lowest average precision: the model at its worst. Are the labels
# right? Is it a look-alike, another light, an image from behind? What you see here tells you which images to collect
# next. (On the painted street: colour casts that turn a white coat pink, and look-alikes who share their clothes.)

# %%
data = clipreid.load_data(f"folder:{CROPS}")
scored = explore.score_domains(clipreid.load(RUN), {"test": data})["test"]
found = {"stage2": scored.similarity()}
ranked_lists(RUN / "hardest.png", scored.query, scored.gallery, found, data.protocol, n_queries=4, choose="hardest")
display(Image(RUN / "hardest.png"))

# %% [markdown]
# How well does a threshold tell matches from mistakes, for the case that a query may have no match at all?

# %%
report = scored.reports[scored.feature]
report.plot_similarities()

# %% [markdown]
# ## Publish (dry run)
#
# What would go to the Hugging Face Hub: the adapter, the necks, the settings, a card with these figures. No images,
# and nothing that belongs to a single individual. Without `--dry-run` the same command uploads it.

# %% language="bash"
# clipreid publish "$RUN" someone/my-first-adapter --dry-run

# %% [markdown]
# ## Use it
#
# In any program, without the training images, with the run folder or the name on the Hub:

# %%
features = clipreid.load(RUN).embed([scored.query.image(0), scored.query.image(1)])
print(features.shape, "cosine of the two:", round(float(features[0] @ features[1]), 3))
