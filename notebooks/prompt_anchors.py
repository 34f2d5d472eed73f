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
# # What did stage 1 learn?
#
# CLIP-ReID begins by learning four tokens for every individual: "a photo of a X X X X person." Nobody says what they
# should mean. They only have to make a text that is near the images of this individual and far from those of all
# others, both encoders frozen. Stage 2 then pulls the images towards these texts, so what the tokens say is what the
# image tower will be taught.
#
# So: what do they say? Here they are asked five questions.
#
# 1. Which words are they near?
# 2. What do the texts know of the people, and what not?
# 3. What lies between two people?
# 4. What happens when a token is taken away?
# 5. Where on the images does the image tower look?
#
# The people are those of the synthetic street, of whom everything is known: their clothes, their captions, and what no
# caption mentions. **Every number below is about this street and a tiny CLIP; it checks the mechanism.** Start Jupyter
# with `RUN=runs/yours` in the environment, and the same questions go to a run of yours and to the images that it was
# trained on (`DATA=market1501:...` says where these lie now, if they were moved). What asks for the truth is left out
# then: attributes are known of the painted street only. The remarks below the figures are about the street as well.

# %%
# %matplotlib inline
import os
from pathlib import Path

import numpy as np
from IPython.display import HTML, display

from clipreid import explore, load
from clipreid.data.synthetic.people import COLOURS
from clipreid.data.synthetic.street import SETS
from clipreid.evaluation import format_table

if not Path("recipes").is_dir():
    os.chdir("..")  # commands are typed in the repository, folders are below it
RUN = os.environ.setdefault("RUN", "runs/prompt_anchors")
DATA = os.environ.setdefault("DATA", "")

# %% [markdown]
# ## Stage 1
#
# The whole stage on all identities, with fewer epochs than by default, so that you need not wait. A folder that holds
# the prompts already is taken as it is.

# %% language="bash"
# test -f "$RUN/identities.safetensors" ||
#     accelerate launch recipes/clipreid_stage1.py --output "$RUN" --prompt-epochs 8 ${DATA:+--data "$DATA"}

# %%
learned = explore.open_prompts(RUN)
data = explore.training_data(RUN, [DATA] if DATA else [])
names, crops = learned.names, data.splits["train"]
painted = data.name in SETS  # of these people everything is known
print(f"{data.name}: {len(names)} identities, {learned.tokens.shape[1]} tokens each of width {learned.tokens.shape[2]}")

# %% [markdown]
# ## Which words are the tokens near?
#
# Each token is a vector in the space where the words of the vocabulary lie. Nothing keeps it near a word. As a measure:
# how near the nearest word is to a vector that points anywhere.

# %%
shown = [i for i in (0, 3, 5, 12) if i < len(names)]

near = explore.nearest_words(learned, range(len(names)), top=1)  # [I, M, 1]
words = near.words[..., 0]
chance = explore.chance_cosine(learned)
print(f"cosine to the nearest word: {near.cosine.mean():.2f}; of a random vector: {chance:.2f}")

explore.draw_rows(
    [explore.Row("\n".join([names[i], *words[i]]), explore.images_of(crops, names[i], most=6)) for i in shown]
)

# %% [markdown]
# Are these words true? Where captions are known: count how many of the four nearest words stand in the person's own
# captions, and how many in the captions of somebody else. The second is what anybody's words would reach.

# %%
captions = [" ".join(set(crops.captions[crops.identities == name])) for name in names]
if all(captions):
    others = [word for word in explore.vocabulary(learned.backbone) if word not in COLOURS]
    truth = {
        "all words": explore.said_truly(words, captions),
        "colours only": explore.said_truly(words, captions, list(COLOURS)),
        "the rest": explore.said_truly(words, captions, others),
    }
    print(f"{np.isin(words, list(COLOURS)).mean():.0%} of the nearest words are colours")
    print(format_table({"words": name, **{k: f"{v:.0%}" for k, v in row.items()}} for name, row in truth.items()))

# %% [markdown]
# Nobody gave the tokens a word, and yet most of them lie near a word that is true of the person, usually a colour. A
# colour is true of its own person far more often than of others; with the other words the difference is smaller.
#
# Do not expect this of a large CLIP. Its vocabulary has 49,408 entries instead of a few hundred, and in
# [CoOp](https://arxiv.org/abs/2109.01134), where such tokens come from, the nearest words often mean nothing. Look at
# both numbers above before you believe a word.

# %% [markdown]
# ## What do the texts know?
#
# A text bank is one text feature for each individual. First a look: each point below is a person, put where the text is
# (the two directions of most variance), painted in the true colour of what is worn on top, where it is known. In
# Jupyter, hold the pointer over a point to see the person.

# %%
attributes = explore.true_attributes(explore.synthetic_people(names, data.name)) if painted else {}
tops = attributes.get("top_colour", np.full(len(names), "unknown"))
paint = {**COLOURS, "unknown": (140, 149, 159)}
places = explore.plane(learned.bank)
first = [explore.images_of(crops, name, most=1)[0] for name in names]
display(HTML(explore.hover_map(places, first, names, [f"rgb{paint[top]}" for top in tops])))
explore.draw_map(places, tops, {name: np.array(rgb) / 255 for name, rgb in paint.items()})

# %% [markdown]
# The same as a matrix: how similar is everybody's text to everybody else's, people in the order of their true colour?

# %%
explore.draw_similarity(learned.bank, tops, "colour of the top")

# %% [markdown]
# The squares along the diagonal say that people with tops of the same colour have similar texts. To be exact about it,
# for every attribute: can a linear probe read it off the text of a person it was not fitted on? (Look-alikes, who share
# their clothes, are never on both sides.) Beside the learned texts stand the texts of the true captions, which is what
# language could say, and the images' own features, which is what there was to learn from. The floor is the same probe
# with somebody else's values.

# %%
few = explore.few(crops, 6)  # six images of each person, of different cameras
seen = learned.features(few)
if painted:
    sentences, which = np.unique(crops.captions, return_inverse=True)
    said = learned.model.embed_text(sentences.tolist())[which]  # [N, E]
    banks = {
        "learned texts": learned.bank,
        "true captions": explore.mean_by(said, crops.identities, names),
        "images": explore.mean_by(seen, few.identities, names),
    }
    probed = explore.probe_table(banks, attributes, explore.families(names, data.name))
    display(explore.draw_probe(probed))

# %% [markdown]
# The colours of the two largest things, what is worn above and below, are in the learned texts, further above the floor
# than all else. The kinds of things (which garment, which hat, which bag) are much nearer to it. Where the captions
# reach further than the images, language knows more than the eye; where the learned texts stay behind the images,
# stage 1 did not need it to tell these people apart.

# %% [markdown]
# ## What lies between two people?
#
# Take the tokens of one person, go in five steps to those of another, and let each text on the way find its images.

# %%
a, b = divmod(int((learned.bank @ learned.bank.T).argmin()), len(names))  # the least alike
if painted:
    a, b = (tops.tolist().index(colour) for colour in ("yellow", "purple"))
way = explore.interpolate(learned, a, b, steps=6)  # [S, E]
found = explore.retrieve(way, seen, top=8)  # [S, 8]
worn = dict(zip(names, tops.tolist(), strict=True)) if painted else {}
met = [[worn.get(few.identities[i], "") for i in rows] for rows in found]
explore.draw_rows(
    [
        explore.Row(f"{names[a]} {100 - 20 * s} %\n{names[b]} {20 * s} %", [few.image(i) for i in rows], met[s])
        for s, rows in enumerate(found)
    ],
    height=0.9,
)

# %% [markdown]
# Above each image stands the true colour of the top. The two ends find the two people, one in yellow and one in
# purple. In between nobody is half of each: the texts on the way find other people, and some of these wear neither.

# %% [markdown]
# ## What is a token worth?
#
# Take one of the four away from everybody, or all of them, and let every text look for its own images among all.
# Three ways to take it away: replaced by the mean of that token over all people, by the word "x" (where the sentence
# began before training), or dropped, so that the sentence is shorter.

# %%
ablations = {by: explore.ablation(learned, seen, few.identities, by) for by in ("mean", "neutral", "drop")}
explore.draw_ablation(ablations)

# %% [markdown]
# No token is idle and none carries everything: what makes up a person is spread over all four. Without any, all texts
# are the same sentence, and finding is chance.

# %% [markdown]
# ## Where on the images?
#
# Attention rollout ([Abnar and Zuidema](https://arxiv.org/abs/2005.00928)) follows through all blocks how much of each
# patch arrives in the feature. It shows where information came from, not why two images are alike. This is the image
# tower before stage 2; give `clipreid.load(RUN)` instead of `learned.model` to see a tuned one.

# %%
own = {names[i]: explore.images_of(crops, names[i], most=5) for i in shown}
explore.draw_rows([explore.Row(name, [*images, *explore.looks(learned.model, images)]) for name, images in own.items()])

# %% [markdown]
# ## Where do anchors look?
#
# A run of [SAGA](../docs/methods/saga.md) has anchors: phrases such as "a backpack", partly learned. Every patch
# attends to them; the more clearly it fits one, the more it counts in the feature. Train one and start Jupyter with
# `SAGA=runs/saga` in the environment:
#
#     accelerate launch recipes/saga.py --init runs/demo --output runs/saga

# %%
SAGA = os.environ.get("SAGA", "")
if SAGA:
    display(explore.draw_anchors(load(SAGA), [images[0] for images in own.values()]))
else:
    print("no SAGA=... in the environment: nothing to show here")

# %% [markdown]
# ## Look around
#
# All of it for any person, with a slider (a static page shows the first one only).


# %%
def person(i: int):
    """One person: images, what the tokens are near, and what the text finds."""
    finds = explore.retrieve(learned.bank[i : i + 1], seen, top=8)[0]
    marks = ["✓" if few.identities[row] == names[i] else few.identities[row] for row in finds]
    return explore.draw_rows(
        [
            explore.Row("\n".join([names[i], *words[i]]), explore.images_of(crops, names[i], most=8)),
            explore.Row("its text finds", [few.image(row) for row in finds], marks),
        ]
    )


display(person(0))
explore.browse(person, len(names))

# %% [markdown]
# ## Next
#
# `your_own_crops` trains on a folder of images; `cross_domain` shows what stage 2 gains and loses.
