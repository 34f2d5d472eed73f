"""The model card of a published run: a metadata block that the Hub reads, and a page that people read.

Everything in it comes from what is published anyway (`clipreid.hub.public`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipreid.backbones.colour import COLOUR
from clipreid.backbones.imported import IMPORTED
from clipreid.backbones.load import TINY
from clipreid.data.attributes import ORACLE
from clipreid.data.layouts import LAYOUTS, WITHDRAWN
from clipreid.evaluation import PROTOCOLS
from clipreid.evaluation.results import CENTRED
from clipreid.evaluation.score import ZERO_SHOT
from clipreid.evaluation.side_by_side import parted
from clipreid.evaluation.tables import TITLES
from clipreid.hub.calibrated import describe_calibration
from clipreid.hub.licences import licence_of
from clipreid.hub.metadata import Facts, metadata, numberless
from clipreid.hub.plain import CLASSES, base_argument
from clipreid.methods import get_method

CURVES, LISTS = "curves.png", "ranked_lists.png"
WHATS = {"lora": "LoRA adapter", "full": "fully fine-tuned image tower", "head": "linear map on frozen features"}
ALT = {CURVES: "Losses, and rank-k before and after training", LISTS: "Ranked lists"}
FOR = """\
It is for retrieval: given a crop that shows one {noun}, rank a gallery of such crops by how likely they show the same
{noun}, for research and in collections that you may lawfully search. It is **not** for finding out who somebody is, for
following people without their knowledge, for decisions about people, or for telling apart anything it was not trained
on. That two images are similar to it is a lead, not a proof: {measured}, and expect worse figures with other cameras,
in other places and seasons."""
PEOPLE = """\
Re-identification can be used to follow people without their knowledge. Have a legal ground for every image of people
that you put into it, tell them where the law asks for it, and keep galleries and features no longer than you need them:
a feature of a person is personal data. {kept} {crops}"""
STAND_IN = """\
**A stand-in: `{backbone}` is a small backbone pretrained on painted images, for trying things out. {figures}**"""
PAINTED = """\
The figures below check mechanisms; they are no evidence about pedestrians, vehicles or animals in photographs."""
PHOTOGRAPHS = "A backbone that has seen photographs can be expected to do better on them."
PIP = '```bash\npip install "transformers>=5" "peft>=0.18"\n```'  # the names of modules are those of transformers 5


def make_card(facts: Facts) -> str:
    """The whole README.md: metadata between lines of dashes, then the page."""
    sections = [
        _title(facts),
        _loading(facts),
        _results(facts),
        _use(facts),
        _data(facts),
        _settings(facts),
        _licence(facts),
    ]
    return f"---\n{metadata(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _title(facts: Facts) -> str:
    what, noun = WHATS[facts.tuning], _either(facts)
    lines = [
        f"# {facts.repository.partition('/')[2]}",
        f"A {what} that turns an image of one {noun} into a feature of {facts.width} numbers, so that images of "
        f"the same {noun} lie close together. {_making(facts)}.",
        STAND_IN.format(backbone=facts.backbone, figures=PAINTED if _is_painted(facts) else PHOTOGRAPHS)
        if facts.backbone in TINY
        else "",
    ]
    return "\n\n".join(line for line in lines if line)


def _is_painted(facts: Facts) -> bool:
    """Whether it was scored, and on the synthetic street alone."""
    return bool(facts.metrics) and all(data.startswith("synthetic") for data in facts.metrics)


def _either(facts: Facts) -> str:
    """`person, vehicle` -> `person or vehicle`."""
    return " or ".join(noun.strip() for noun in facts.noun.split(","))


def _making(facts: Facts) -> str:
    version, data = f"clipreid {facts.config['clipreid']}", facts.config.get("data")
    if not data:
        return f"Its weights were imported with {version}"
    about = (get_method(facts.method).__doc__ or "").partition("\n")[0].rstrip(".")
    return (
        f"Backbone: `{facts.backbone}`; trained on {' and '.join(data['names'])} with {version}, method "
        f"`{facts.method}`: {about}"
    )


def _loading(facts: Facts) -> str:
    height, width = _crop(facts.config["backbone"])
    compared = "compare by dot product"
    if facts.metric != "cosine":
        compared = f"compare by the {facts.metric}: model.metric(queries, gallery)"
    lines = [
        "## How to load it",
        "```bash\npip install clipreid\n```",
        f'```python\nimport clipreid\n\nmodel = clipreid.load("{facts.repository}")\nfeatures = model.embed(["a.jpg", '
        f'"b.jpg"])  # float32 [2, {facts.width}], unit length; {compared}\n```',
        f"Give crops that show one {_either(facts)} each. `embed` prepares them: turned upright by EXIF, "
        f"transparency on black, of 16 bits the upper eight; the whole crop is resized to {height}x{width} (height x "
        f"width, {facts.interpolation}), RGB 0..1, mean {_triple(facts.mean)}, std {_triple(facts.std)}.",
    ]
    if sides := [name for name in facts.reads if name != "attributes"]:
        given = ", ".join(f"{name}=[...]" for name in sides)
        lines.append(
            f"It was trained with the {' and '.join(sides)} of the images: `model.embed(images, {given})`; "
            "one that it was not trained with takes the mean."
        )
    if facts.config["config"].get("text_tuning", "frozen") != "frozen":
        lines.append(
            "Its text tower was trained as well: `model.embed_text(sentences)` gives a feature for each sentence, to "
            "be compared with the images' `projection`; `clipreid search` does it (`--text`)."
        )
    if "attributes" in facts.reads:
        lines.append(
            "It was trained with true attributes of the images: `model.embed(images, attributes=[{...}, ...])`, in the "
            "words of the training set; of what is not given no expert takes part. **The figures of this card were "
            f"measured with them ({ORACLE}).**"
        )
    if facts.plain:
        where = "with transformers and peft"
        where += "; the weights of this backbone lie in the clipreid package" if facts.base in TINY else " alone"
        lines += [
            f"The adapted tower {where}:\n\n{PIP}\n\n```python\n{_tower(facts)}\n```",
            f"<details><summary>From an image to the same feature as above, {where}</summary>\n\n"
            f"```python\n{facts.plain.strip()}\n```\n\n</details>",
        ]
    else:
        lines.append(f"Plain peft does not give the same features: {facts.reason}.")
    return "\n\n".join(lines)


def _tower(facts: Facts) -> str:
    """The least that loads the adapter with peft, and runs as it stands."""
    cls, packaged, (height, width) = CLASSES[facts.family], facts.base in TINY, _crop(facts.config["backbone"])
    assert facts.base is not None
    place = base_argument(facts.base, facts.config["backbone"].get("revision"))
    lines = [
        "import torch",
        *["from importlib.resources import files"] * packaged,
        f"from peft import PeftModel\nfrom transformers import {cls}\n",
        f"base = {cls}.from_pretrained({place}, dtype=torch.float32)",
        f'tower = PeftModel.from_pretrained(base, "{facts.repository}").eval()',
        f"pixels = torch.randn(2, 3, {height}, {width})  # stands for two crops, prepared as above",
        "out = tower(pixel_values=pixels, interpolate_pos_encoding=True)",
    ]
    return "\n".join(lines)


def _crop(backbone: Mapping[str, Any]) -> tuple[int, int]:
    height, width = backbone.get("image_size") or backbone["vision"]["image_size"]
    return int(height), int(width)


def _triple(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _results(facts: Facts) -> str:
    entries = [(data, model, entry) for data, models in facts.metrics.items() for model, entry in models.items()]
    alt = ALT if entries else {**ALT, CURVES: "Losses"}
    images = [f"![{alt[image]}]({image})" for image in facts.images]
    calibrated = [describe_calibration(facts.calibration)] if facts.calibration else []
    if not entries:
        unknown = "It was not scored before it was published: measure it on your own data before you use it."
        return "\n\n".join(["## Results", unknown, *calibrated, *images])
    rows = [
        [data, _called(model, facts.stage), entry.get("protocol", "-"), *(_figure(entry, key) for key in TITLES)]
        for data, model, entry in entries
    ]
    weaker = "`clipreid.load(..., strength=s)` with s below 1 goes back towards it, with 0 wholly."
    worse = [
        data
        for data, models in facts.metrics.items()
        if models.get(facts.stage, {}).get("mAP", 1.0) < models.get(ZERO_SHOT, {}).get("mAP", 0.0)
    ]
    lines = [
        "## Results",
        _table(["data", "model", "protocol", *TITLES.values()], rows),
        *[f"**On {' and on '.join(worse)} the untrained backbone has the higher mAP.** {weaker}"] * bool(worse),
        _explained(facts, [entry for _, _, entry in entries]),
        *calibrated,
        *images,
    ]
    return "\n\n".join(lines)


def _explained(facts: Facts, entries: Sequence[Mapping[str, Any]]) -> str:
    """What the figures mean: units, intervals, counts, protocol."""
    names = [name for models in facts.metrics.values() for name in models]
    counts = "; ".join(f"{data}: {_count(models, facts.stage)}" for data, models in facts.metrics.items())
    protocols = dict.fromkeys(entry.get("protocol", "") for entry in entries)
    rules = "; ".join(f"`{name}`: {PROTOCOLS[name].description}" for name in protocols if name in PROTOCOLS)
    texts = {
        "All figures in percent.": True,
        f"Zero-shot: the backbone before any training{_zero_shot_feature(facts)}.": ZERO_SHOT in names,
        "In brackets 95 % intervals by bootstrap over identities: what the figures owe to who was tested, not to seeds "
        "or data.": any(entry.get("intervals") for entry in entries),
        "After ± the standard deviation over the protocol's random galleries.": any(e.get("std") for e in entries),
        _strength(facts): bool(_strength(facts)),
        f"Scored: {counts}.": True,
        f"Protocol {rules}.": bool(rules),
        "Rows of different data names, remarks in brackets included, were scored on different images, labels or "
        "protocols: they are not to be compared.": len({parted(data)[0] for data in facts.metrics})
        < len(facts.metrics),
        f"Features: {_spread(facts)}.": bool(_spread(facts)),
        f"`{COLOUR}`: stripes of colour, which know nothing of individuals.": COLOUR in names,
        "Centred: the mean feature of each camera is subtracted, of training images (train) or of all test images "
        "(gallery: transductive).": any(CENTRED in name for name in names),
        "Re-ranked: the order takes all queries and the whole gallery into account (transductive), which a search for "
        "one image cannot.": any(not part.startswith(CENTRED) for name in names for part in name.split("+")[1:]),
    }
    return " ".join(text for text, holds in texts.items() if holds)


def _strength(facts: Facts) -> str:
    """How much of what training changed was kept, where the run chose it; "" else."""
    found = facts.config.get("strength")
    if not found:
        return ""
    tried = ", ".join(
        f"{100 * mAP:.1f} at {int(name.removeprefix('mAP_')) / 100:g}"
        for name, mAP in found.items()
        if name.startswith("mAP_")
    )
    return (
        f"Of what training changed a part of {found['chosen']:g} is kept, chosen on training images: of identities and "
        f"cameras left out of a second training, mAP {tried}."
    )


def _spread(facts: Facts) -> str:
    """How the features lie on each data set; "" where it was not measured."""
    found = []
    for data, models in facts.metrics.items():
        state = models.get(facts.stage, {}).get("health", {})
        if {"different_5", "different_50", "different_95", "dimension", "width", "int8"} <= state.keys():
            spread = f"{state['different_50']:.2f} ({state['different_5']:.2f} to {state['different_95']:.2f})"
            found.append(
                f"{data}: cosine of different identities {spread}, effective dimension {state['dimension']:.0f} of "
                f"{state['width']:.0f}, mAP lost as int8 {100 * state['int8']:.1f}"
            )
    return "; ".join(found)


def _zero_shot_feature(facts: Facts) -> str:
    """Where its row is not of the feature that this model has: then strength 0 does not give it exactly."""
    other = [
        f"{data}: {found[ZERO_SHOT]['feature']}"
        for data, found in facts.metrics.items()
        if {facts.stage, ZERO_SHOT} <= found.keys()
        and found[ZERO_SHOT].get("feature") not in (None, found[facts.stage].get("feature"))
    ]
    return f", scored on the better of its features (not the concatenation on {'; '.join(other)})" if other else ""


def _called(model: str, stage: str) -> str:
    """`stage2@0.5+k-reciprocal` -> `this model, strength 0.5, re-ranked: k-reciprocal`."""
    head, *more = model.split("+")
    name, _, strength = head.partition("@")
    text = ("this model" if name == stage else name) + (f", strength {strength}" if strength else "")
    for part in more:
        centred = part.startswith(CENTRED)
        text += f", centred by camera ({part.removeprefix(CENTRED)})" if centred else f", re-ranked: {part}"
    return text


def _figure(entry: Mapping[str, Any], key: str) -> str:
    if key not in entry:
        return "-"
    text, interval = f"{100 * entry[key]:.1f}", entry.get("intervals", {}).get(key)
    if interval:
        return f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{text} ± {100 * entry['std'][key]:.1f}" if key in entry.get("std", {}) else text


def _count(models: Mapping[str, Any], stage: str) -> str:
    counts = (models.get(stage) or next(iter(models.values()))).get("counts", {})
    if not counts:
        return "counts not kept"
    asked, people = f"{counts['valid_queries']:,} queries", f"{counts['query_identities']:,} identities"
    return f"{asked} of {people} against {counts['gallery']:,} images"


def _use(facts: Facts) -> str:
    kept = (
        "The tensors that belong to single training identities are part of this repository, without their names."
        if facts.identities
        else "What belongs to single training identities (prompts, text bank, classifiers) is not in this repository."
    )
    crops = "The ranked lists show crops." if LISTS in facts.images else "No crop of them is in it."
    people = PEOPLE.format(kept=kept, crops=crops)
    measured = "look at the figures above" if facts.metrics else "measure it on images like yours"
    use = FOR.format(noun=_either(facts), measured=measured)
    return f"## What it is for, and what not\n\n{use}\n\n## People in images\n\n{people}"


def _data(facts: Facts) -> str:
    found, trained = facts.config.get("fingerprint", {}), facts.config.get("data", {}).get("names", [])
    rows = [
        [data, split, *(f"{part[key]:,}" for key in ("images", "identities", "cameras")), f"`{part['hash']}`"]
        for data, splits in found.items()
        for split, part in splits.items()
    ]
    lines = ["## Data", "The run kept no fingerprint of its data."]
    if rows:
        lines = [
            "## Data",
            _table(["data", "split", "images", "identities", "cameras", "fingerprint"], rows),
            "The fingerprint is a hash of file names (without folders), identities, cameras and views: the same where "
            "the data are the same.",
        ]
    if rows and (later := [name for name in facts.metrics if parted(name)[0] not in found]):
        lines.append(f"Scored after training, without a fingerprint: {', '.join(later)}.")
    if any(name.partition(":")[0] == "synthetic" for name in [*trained, *found, *facts.metrics]):
        lines.append("`synthetic` is the street that clipreid paints itself: there is no photograph in it.")
    public = dict.fromkeys(numberless(name) for name in [*trained, *found])
    lines += [
        f"**{name} was withdrawn by its authors: the people in it had not agreed to it.**"
        for name in public
        if name in LAYOUTS and LAYOUTS[name].notice == WITHDRAWN
    ]
    return "\n\n".join(lines)


def _settings(facts: Facts) -> str:
    """Every setting of the method that is published, and the preset and seed."""
    if not facts.config.get("data"):
        return "## Training\n\nThe weights were imported from a checkpoint; how they were trained is not recorded here."
    run, values = facts.config.get("run", {}), facts.config["config"]
    rows = [["method", f"`{facts.method}`"], ["stages", ", ".join(facts.config["stages"])]]
    rows += [[name, str(run.get(name))] for name in ("preset", "seed", "precision")]
    rows += [[name, _shown(value)] for name, value in values.items() if value not in (None, [])]
    table = _table(["setting", "value"], rows)
    about = "What they mean is said by `--help` of the recipe, and in `config.json` are all of them."
    return f"## Training\n\n{about}\n\n<details><summary>Settings</summary>\n\n{table}\n\n</details>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _licence(facts: Facts) -> str:
    base, name = licence_of(facts.backbone)
    known = f"`{name or base}`, as its publisher states" if base != "unknown" else "unknown to clipreid: look it up"
    where = f"Licence of the backbone `{facts.backbone}`: {known}."
    if facts.backbone == IMPORTED:
        where = "The weights come from somebody's checkpoint: its licence holds for them."
    own = f"These weights: `{facts.licence}`. " if facts.licence else ""
    data = "The terms of the training data may limit what the weights can be used for as well."
    return f"## Licence\n\n{own}{where} {data}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
