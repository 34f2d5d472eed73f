"""A run that starts from the weights of another one (`--init RUN`)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from clipreid.backbones.record import backbone_print
from clipreid.errors import UserError
from clipreid.hub.checks import Settings, read_settings, read_tensors
from clipreid.hub.download import find_run
from clipreid.hub.files import CONFIG, HEADS, IDENTITIES, TEXT_ADAPTER, TEXT_TOWER, TOWER
from clipreid.hub.folder import find_adapter, head_state, identity_state, load_identities, load_tower, tuning_of
from clipreid.model import ReIDModel

OF_RUN = (
    "raw_logits",
    "image_size",
    "stride",
    "pixels",
    "positions",
    "train_interpolation",
    "test_interpolation",
    "noun",
    "data",
    "test",
    "pattern",
    "columns",
    "unknown",
)


def inherited(method: ModuleType, init: Path) -> dict[str, Any]:
    """What a run of `method` takes over from the run `init` where nothing else is asked for, by the names of flags.

    Backbone and data, and of the settings those that both methods have and `method.INHERITED` names: what shapes the
    tower. For `clipreid.config.configure(method, init=init, **inherited(method, init), ...)`.

    Raises:
        UserError: not a finished run, or an imported one.
    """
    settings = _read(init)[1]
    run = settings.record.get("run", {})
    found = {name: run[name] for name in OF_RUN if run.get(name) is not None}
    found |= {
        name: getattr(settings.config, name)
        for name in getattr(method, "INHERITED", ())
        if hasattr(settings.config, name)
    }
    found["backbone"] = settings.backbone["name"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _read(init: Path) -> tuple[Path, Settings]:
    """The folder and the settings of a run to start from."""
    folder = find_run(init)
    settings = read_settings(folder)
    if "vision" in settings.backbone:
        raise UserError(f"--init {init}: it was imported as a whole image tower, and says no backbone to train again")
    return folder, settings


def load_initial(model: ReIDModel, init: Path, names: list[str]) -> str:
    """Copies the weights of a finished run into a new model: image tower, text tower where both trained it in the same
    way, the heads that fit, and the classifiers where the identities are the same. Returns a sentence that says what
    was taken and what is new.

    Args:
        model: of any method, with the backbone and the tuning of that run.
        init: its folder, or OWNER/NAME on the Hub.
        names: [I] of the training identities.

    Raises:
        UserError: not a finished run, or an imported one; another backbone or tuning; weights that do not fit.
    """
    folder, settings = _read(init)
    (backbone,) = model.source
    if settings.backbone["print"] != backbone_print(backbone):
        raise UserError(
            f"--init {init}: it was trained on other weights or another crop ({folder / CONFIG}): give its backbone, "
            f"--backbone {settings.backbone['name']}, and its --image-size and --stride"
        )
    tuning = tuning_of(settings.config)
    if tuning != model.tuning:
        raise UserError(f"--init {init}: it was trained with --tuning {tuning}, this run has {model.tuning}")
    load_tower(model.image, tuning, find_adapter(folder) if tuning == "lora" else folder / TOWER, folder)
    texts = {"lora": folder / TEXT_ADAPTER, "full": folder / TEXT_TOWER}
    trained = [kind for kind, file in texts.items() if file.is_file()]
    text_too = model.text is not None and model.text_tuning in trained
    if text_too:
        load_tower(model.text, model.text_tuning, texts[model.text_tuning], folder)
    own, found = head_state(model), read_tensors(folder / HEADS, folder)
    fits = {
        name: found[settings.renamed(name)]
        for name, x in own.items()
        if settings.renamed(name) in found and found[settings.renamed(name)].shape == x.shape
    }
    kept, theirs = load_identities(folder) if (folder / IDENTITIES).is_file() else ({}, [])
    if theirs == names:
        fits |= {n: kept[n] for n, x in identity_state(model).items() if n in kept and kept[n].shape == x.shape}
    model.load_state_dict(fits, strict=False)
    new = sorted({name.partition(".")[0] for name in own.keys() - fits.keys()})
    unused = sorted(found.keys() - {settings.renamed(name) for name in fits})
    text = f"started from {init}: its image tower{', its text tower' * text_too} and {len(fits)} tensors of its heads"
    text += f"; new: {', '.join(new)}" if new else ""
    text += "; not used: its text tower" if trained and not text_too else ""
    return text + (f"; not used: {len(unused)} tensors, such as {unused[0]}" if unused else "")
