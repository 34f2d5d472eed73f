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
# # In-domain and cross-domain
#
# A model that was tuned to some cameras is better at these cameras. Is it better at others? In this field, often it is
# worse: what it learned is partly the cameras. A model that was never tuned has nothing to lose. In between lie the
# choices that this notebook puts into one figure:
#
# - **zero-shot**: the backbone as it comes,
# - **no prompts**: tuned by identity and triplet losses alone,
# - **two stages**: the same, pulled towards the learned texts,
# - **the dial**: only a part of what tuning changed,
# - **fusion**: zero-shot and tuned side by side, their similarities added.
#
# In-domain are six cameras of the synthetic street, cross-domain six others, with other people, unseen in training.
# **The figure is about this street, a tiny CLIP, a few people and a short training: a check of mechanisms.** The same
# cells draw it for real runs: start Jupyter with `RUN=runs/mine`, `PLAIN=runs/mine-without-prompts`,
# `IN_DOMAIN_DATA=market1501:...` and `CROSS_DOMAIN_DATA=msmt17:...` in the environment.

# %%
# %matplotlib inline
import os
from pathlib import Path

import clipreid
from clipreid import explore
from clipreid.evaluation import format_table

if not Path("recipes").is_dir():
    os.chdir("..")  # commands are typed in the repository, folders are below it
RUN = os.environ.setdefault("RUN", "runs/two_stages")
PLAIN = os.environ.setdefault("PLAIN", "runs/no_prompts")
CROPS = Path(os.environ.setdefault("CROPS", "runs/cross_domain"))
IN_DOMAIN = os.environ.setdefault("IN_DOMAIN_DATA", f"folder:{CROPS}/in-domain")
CROSS_DOMAIN = os.environ.setdefault("CROSS_DOMAIN_DATA", f"folder:{CROPS}/cross-domain")
if f"folder:{CROPS}/in-domain" != IN_DOMAIN and RUN == "runs/two_stages":
    raise clipreid.UserError("IN_DOMAIN_DATA is given: give RUN and PLAIN too, two runs on these data")

# %% [markdown]
# Some people to train on, other people at the same cameras to test on, and as many at the other cameras.

# %%
TRAINED, TESTED = 60, 30
if f"folder:{CROPS}/in-domain" == IN_DOMAIN and not (CROPS / "in-domain").exists():
    street = clipreid.load_data("synthetic").splits
    test = explore.few(street["gallery"], 6, identities=TESTED)
    train = explore.few(street["train"], 6, identities=TRAINED)
    explore.write_folder({"train": train, "test": test}, CROPS / "in-domain")
if f"folder:{CROPS}/cross-domain" == CROSS_DOMAIN and not (CROPS / "cross-domain").exists():
    others = clipreid.load_data("synthetic:new-cameras").splits
    explore.write_folder({"test": explore.few(others["gallery"], 6, identities=TESTED)}, CROPS / "cross-domain")

domains = {"in-domain": clipreid.load_data(IN_DOMAIN), "cross-domain": clipreid.load_data(CROSS_DOMAIN)}
six = [explore.Row(name, [data.splits["gallery"].image(i) for i in range(12)]) for name, data in domains.items()]
explore.draw_rows(six)

# %% [markdown]
# ## Two trainings
#
# The recipe twice, with and without its first stage, with equal flags: fewer epochs than by default, so that you need
# not wait. Folders that hold a trained model already are taken as they are.

# %% language="bash"
# train() { accelerate launch recipes/clipreid_stage2.py --data "$IN_DOMAIN_DATA" --epochs 5 "$@"; }
# test -f "$RUN/heads.safetensors" || train --output "$RUN" --prompt-epochs 12
# test -f "$PLAIN/heads.safetensors" || train --output "$PLAIN" --prompts none

# %% [markdown]
# ## The dial
#
# `clipreid.load(RUN, strength=0.5)` takes half of what tuning changed: 0 is the backbone, 1 the run. Nothing is trained
# again, so any point between is available at once. (`clipreid evaluate RUN --strength 0,0.25,0.5,0.75,1` draws it
# from the command line.)

# %%
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
tuned = clipreid.load(RUN)
dial = {strength: explore.score_domains(tuned, domains, strength) for strength in STRENGTHS}
zero_shot, two_stages = dial[0.0], dial[1.0]
no_prompts = explore.score_domains(clipreid.load(PLAIN), domains)

# %% [markdown]
# ## Fusion
#
# Two models instead of one: the cosines of the backbone and of the run, added with a weight. It costs both at search,
# where the dial costs one.

# %%
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
fusion = {weight: explore.fused_precision(two_stages, zero_shot, weight) for weight in WEIGHTS}

# %% [markdown]
# ## The trade-off
#
# To the right is better in-domain, up is better cross-domain; a ring is a model without strength settings.

# %%
precision = {strength: explore.mean_precision(found) for strength, found in dial.items()}
plain = explore.mean_precision(no_prompts)
lines = [
    explore.line_of("the dial", list(precision.values()), [f"{strength:g}" for strength in STRENGTHS]),
    explore.line_of("fusion", list(fusion.values())),
    explore.line_of("zero-shot", [precision[0.0]]),
    explore.line_of("two stages", [precision[1.0]]),
    explore.line_of("no prompts", [plain]),
]
explore.draw_tradeoff(lines)

# %%
table = {"zero-shot": precision[0.0], "no prompts": plain, "two stages": precision[1.0]}
table |= {f"dial at {strength:g}": precision[strength] for strength in STRENGTHS[1:-1]}
table |= {f"fusion, {weight:g} of two stages": fusion[weight] for weight in WEIGHTS[1:-1]}
print(format_table({"model": name, **{k: f"{v:.1%}" for k, v in found.items()}} for name, found in table.items()))

# %% [markdown]
# With the texts, training gains in-domain and keeps cross-domain what the backbone could do. Without them the same
# training gains next to nothing in-domain, and loses a little cross-domain. A strength of 0.75 instead of 1 changes
# little here. (WiSE-FT, [arXiv 2109.01903](https://arxiv.org/abs/2109.01903), found more of it with CLIP on ImageNet.)
# Choose the strength on a validation split, never on the test that you report.
#
# How sure is this? With so few people, not very: 95 % intervals of the two ends, by bootstrap over identities.

# %%
for name, ends in {"zero-shot": zero_shot, "two stages": two_stages}.items():
    for domain, scored in ends.items():
        low, high = scored.reports[scored.feature].intervals["mAP"]
        print(f"{name:11s} {domain:12s} mAP {low:.1%} to {high:.1%}")
