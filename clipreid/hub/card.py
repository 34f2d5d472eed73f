"""The model card of a published run: a metadata block that the Hub reads, and a page that people read.

Everything in it comes from what is published anyway (`clipreid.hub.public`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipreid.backbones.load import TINY
from clipreid.data.layouts import LAYOUTS, WITHDRAWN
from clipreid.evaluation import PROTOCOLS
from clipreid.evaluation.tables import TITLES
from clipreid.hub.licences import licence_of
from clipreid.hub.plain import CLASSES

THIS, ZERO_SHOT = "stage2", "zero-shot"  # models of metrics.json
WHATS = {"lora": "LoRA adapter", "full": "fully fine-tuned image tower", "head": "linear map"}
ALT = {"curves.png": "Losses, and rank-k before and after training", "ranked_lists.png": "Ranked lists"}
NOT_FOR = """\
It is **not** for finding out who somebody is, for following people without their knowledge, for decisions about
people, or for telling apart anything it was not trained on. That two pictures are similar to it is a lead, not a
proof: look at the error rates below, and expect worse ones with other cameras, places, seasons and people."""
PEOPLE = """\
Re-identification can be used to follow people without their knowledge. Have a legal ground for every picture you put
into it, tell the people in them where the law asks for it, and keep galleries and features no longer than you need
them: a feature of a person is personal data. {identities}{crops}"""
STAND_IN = """\
**A stand-in: `{backbone}` is a small backbone pretrained on painted pictures. The figures below check mechanisms; they
are no evidence about pedestrians, vehicles or animals in photographs.**"""


@dataclass(frozen=True)
class Facts:
    """What a card is made of; there is no path and no name of an identity in it."""

    repository: str  # OWNER/NAME
    config: Mapping[str, Any]  # public
    metrics: Mapping[str, Mapping[str, Any]]  # public: {data: {model: figures}}
    family: str  # of the backbone: clip, siglip, image-only
    base: str | None  # the backbone in transformers' layout (`transformers_base`)
    plain: str  # Python that gives the features with peft and transformers alone, or
    reason: str  # why there is none
    width: int  # D of the test feature
    licence: str | None = None  # given by the user
    pictures: Sequence[str] = ()  # files to show: curves.png, ranked lists
    identities: bool = False  # whether per-identity tensors are published

    @property
    def backbone(self) -> str:
        return str(self.config["backbone"]["name"])

    @property
    def tuning(self) -> str:
        return str(self.config["model"]["tuning"])

    @property
    def noun(self) -> str:
        return str(self.config.get("stage1", {}).get("noun", "individual"))


def make_card(facts: Facts) -> str:
    """The whole README.md: metadata between lines of dashes, then the page."""
    sections = [_title(facts), _loading(facts), _results(facts), _data(facts), _settings(facts), _licence(facts)]
    return f"---\n{_metadata(facts)}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _metadata(facts: Facts) -> str:
    """The YAML block, its results as a model-index that the Hub checks."""
    from huggingface_hub import ModelCardData

    identifier, name = (facts.licence, "") if facts.licence else licence_of(facts.backbone)
    adapter = facts.tuning == "lora"
    data = [spec.removeprefix("hub:") for spec in facts.config.get("flags", {}).get("data", [])]
    nouns, results = [f"{noun.strip()}-re-identification" for noun in facts.noun.split(",")], _eval_results(facts)
    card = ModelCardData(
        model_name=facts.repository if results else None,
        license=identifier,
        license_name=name or None,
        library_name="peft" if adapter else "clipreid",
        pipeline_tag="image-feature-extraction",
        tags=["clipreid", "re-identification", *nouns, "image-retrieval", *["lora"] * adapter],
        datasets=data or None,
        base_model=None if facts.base in TINY else facts.base,
        metrics=["mAP", "mINP", "CMC"] if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _eval_results(facts: Facts) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Re-identification",
            dataset_type=data.replace(" ", "-"),
            dataset_name=data,
            dataset_split="query and gallery",
            metric_type=key,
            metric_name=TITLES[key],
            metric_value=round(entry[key], 4),
            metric_args={"protocol": entry.get("protocol", ""), **_interval(entry, key)},
        )
        for data, models in facts.metrics.items()
        for entry in [models.get(THIS, {})]
        for key in TITLES
        if key in entry
    ]


def _interval(entry: Mapping[str, Any], key: str) -> dict[str, list[float]]:
    both = entry.get("intervals", {}).get(key)
    return {"interval_95": [round(float(value), 4) for value in both]} if both else {}


def _title(facts: Facts) -> str:
    what, nouns = WHATS[facts.tuning], facts.noun.replace(",", " and")
    lines = [
        f"# {facts.repository.partition('/')[2]}",
        f"A {what} that turns a picture of one {nouns} into a feature of {facts.width} numbers, so that pictures of "
        f"the same {nouns} lie close together. Backbone: `{facts.backbone}`; made with clipreid "
        f"{facts.config['clipreid']}{_prompts(facts)}.",
        STAND_IN.format(backbone=facts.backbone) if facts.backbone in TINY else "",
        f"It is for retrieval: given a crop that shows one {nouns}, rank a gallery of such crops by how likely they "
        f"show the same {nouns}, for research and in collections that you may lawfully search.\n{NOT_FOR}",
        "## People in pictures",
        PEOPLE.format(
            identities="The tensors that belong to single training identities are part of this repository, without "
            "their names." if facts.identities else "What belongs to single training identities (prompts, text bank, "
            "classifiers) is not part of this repository.",
            crops="" if len(facts.pictures) > 1 else " No crops are, either.",
        ),
    ]  # fmt: skip
    return "\n\n".join(line for line in lines if line)


def _prompts(facts: Facts) -> str:
    prompts = facts.config.get("stage2", {}).get("prompts")
    paper = " ([CLIP-ReID](https://arxiv.org/abs/2211.13977))"
    return {"identity": f", pulled towards learned texts{paper}", "none": ", without texts"}.get(prompts, "")


def _loading(facts: Facts) -> str:
    model, (height, width) = facts.config["model"], _crop(facts.config["backbone"])
    lines = [
        "## How to load it",
        f'```python\nimport clipreid\n\nmodel = clipreid.load("{facts.repository}")\nfeatures = model.embed(["a.jpg", '
        f'"b.jpg"])  # float32 [2, {facts.width}], unit length; compare by dot product\n```',
    ]
    if model["sie"] != "none":
        lines.append(
            f"It was told the {model['sie']} of each picture: `model.embed(pictures, cameras=[...], views=[...])`; "
            "one that it was not trained with takes the mean."
        )
    if facts.plain:
        lines += [
            f"The adapted tower with transformers and peft alone:\n\n```python\n{_tower(facts)}\n```",
            "<details><summary>From a picture to the same feature as above</summary>\n\n"
            f"```python\n{facts.plain.strip()}\n```\n\n</details>",
        ]
    else:
        lines.append(f"Plain peft does not give the same features: {facts.reason}.")
    lines.append(
        f"Pictures: the whole crop resized to {height}x{width} (height x width, {model['interpolation']}), RGB 0..1, "
        f"mean {_triple(model['mean'])}, std {_triple(model['std'])}."
    )
    return "\n\n".join(lines)


def _tower(facts: Facts) -> str:
    """The least that loads the adapter with peft."""
    cls, packaged = CLASSES[facts.family], facts.base in TINY
    place = f'files("clipreid") / "weights" / "{facts.base}"' if packaged else f'"{facts.base}"'
    lines = [
        *["from importlib.resources import files"] * packaged,
        f"from peft import PeftModel\nfrom transformers import {cls}\n",
        f'base = {cls}.from_pretrained({place}, dtype="float32")',
        f'tower = PeftModel.from_pretrained(base, "{facts.repository}").eval()',
        "out = tower(pixel_values=pixels, interpolate_pos_encoding=True)",
    ]
    return "\n".join(lines)


def _crop(backbone: Mapping[str, Any]) -> tuple[int, int]:
    height, width = backbone.get("image_size") or backbone["vision"]["image_size"]
    return int(height), int(width)


def _triple(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _results(facts: Facts) -> str:
    rows: list[list[str]] = []
    protocols: dict[str, None] = {}
    worse = []
    for data, models in facts.metrics.items():
        for model, entry in models.items():
            rows.append([data, _called(model), *(_figure(entry, key) for key in TITLES)])
            protocols[entry.get("protocol", "")] = None
        if THIS in models and models[THIS]["mAP"] < models.get(ZERO_SHOT, {}).get("mAP", 0.0):
            worse.append(data)
    if not rows:
        return "## Results\n\nIt was not scored before it was published: measure it on your own data before you use it."
    counts = "; ".join(f"{data}: {_count(models)}" for data, models in facts.metrics.items())
    rules = "; ".join(f"`{name}`: {PROTOCOLS[name].description}" for name in protocols if name in PROTOCOLS)
    lines = [
        "## Results",
        _table(["data", "model", *TITLES.values()], rows),
        *[f"**On {' and on '.join(worse)} the untrained backbone has the higher mAP.**"] * bool(worse),
        "Percent; in brackets 95 % intervals by bootstrap over identities: what the figures owe to who was tested, not "
        f"to seeds or data. Scored: {counts}. Protocol {rules}.",
        *(f"![{ALT[picture]}]({picture})" for picture in facts.pictures),
    ]
    return "\n\n".join(lines)


def _called(model: str) -> str:
    """`stage2@0.5+k-reciprocal` -> `this model, strength 0.5, re-ranked: k-reciprocal`."""
    head, _, reranking = model.partition("+")
    name, _, strength = head.partition("@")
    text = "this model" if name == THIS else name
    return text + (f", strength {strength}" if strength else "") + (f", re-ranked: {reranking}" if reranking else "")


def _figure(entry: Mapping[str, Any], key: str) -> str:
    if key not in entry:
        return "-"
    text, interval = f"{100 * entry[key]:.1f}", entry.get("intervals", {}).get(key)
    if interval:
        return f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{text} ± {100 * entry['std'][key]:.1f}" if key in entry.get("std", {}) else text


def _count(models: Mapping[str, Any]) -> str:
    counts = (models.get(THIS) or next(iter(models.values()))).get("counts", {})
    if not counts:
        return "counts not kept"
    asked, people = f"{counts['valid_queries']:,} queries", f"{counts['query_identities']:,} identities"
    return f"{asked} of {people} against {counts['gallery']:,} pictures"


def _data(facts: Facts) -> str:
    found = facts.config.get("fingerprint", {})
    rows = [
        [data, split, *(f"{part[key]:,}" for key in ("pictures", "identities", "cameras")), f"`{part['hash']}`"]
        for data, splits in found.items()
        for split, part in splits.items()
    ]
    if not rows:
        return "## Data\n\nThe run kept no fingerprint of its data."
    lines = [
        "## Data",
        _table(["data", "split", "pictures", "identities", "cameras", "fingerprint"], rows),
        "The fingerprint is a hash of file names (without folders), identities, cameras and views.",
    ]
    lines += [f"**{name} was withdrawn by its authors: the people in it had not agreed to it.**" for name in found
              if name in LAYOUTS and LAYOUTS[name].notice == WITHDRAWN]  # fmt: skip
    return "\n\n".join(lines)


def _settings(facts: Facts) -> str:
    config, model = facts.config, facts.config["model"]
    values, stage1, stage2 = config.get("values"), config.get("stage1", {}), config.get("stage2", {})
    if not values:
        return "## Training\n\nThe weights were imported from a checkpoint; how they were trained is not recorded here."
    tuned = {"lora": f"LoRA, rank {model['lora_rank']}, alpha {model['lora_alpha']:g}"}.get(facts.tuning, facts.tuning)
    rows = [["tuning", tuned], ["preset, seed", f"{stage1.get('preset')}, {stage1.get('seed')}"]]
    if stage2.get("prompts") == "identity":
        rows.append(["stage 1", f"{values['prompt_epochs']} epochs, rate {values['prompt_rate']:g}, "
                                f"batches of {values['prompt_batch']}, {stage1.get('tokens')} tokens"])  # fmt: skip
    rows += [
        ["stage 2", f"{values['epochs']} epochs of {values['optimiser']}, {values['schedule']} schedule, rate "
                    f"{values['rate'][values['tuning']]:g}, heads {values['head_rate']:g}"],
        ["batch", f"{values['identities_per_batch']} identities x {values['pictures_per_identity']} pictures"],
        ["losses", f"identity {values['weight_id']:g}, triplet {values['weight_triplet']:g} (margin "
                   f"{values['margin']:g}), image to text {values['weight_i2t']:g}"],
        ["features", f"aggregation {model['aggregation']}, side information {model['sie']}, positions "
                     f"{config['backbone']['positions']}"],
    ]  # fmt: skip
    return f"## Training\n\n{_table(['setting', 'value'], rows)}\n\nEvery setting is in `config.json`."


def _licence(facts: Facts) -> str:
    base, name = licence_of(facts.backbone)
    known = f"`{name or base}`, as its publisher states" if base != "unknown" else "unknown to clipreid: look it up"
    own = f"These weights: `{facts.licence}`. " if facts.licence else ""
    return (
        f"## Licence\n\n{own}Licence of the backbone `{facts.backbone}`: {known}. The terms of the training data may "
        "limit what the weights can be used for as well."
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
