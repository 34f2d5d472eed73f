"""`clipreid embed` and `clipreid search`: the flags; the work is in `clipreid.search`."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.calibrate import answer, is_nobody, known_calibration, threshold_of, with_probabilities
from clipreid.cli.scoring import check_numbers
from clipreid.cli.search_centred import about_means, centring, check_centring, check_kept, kept_means
from clipreid.cli.search_embed import embed_first
from clipreid.errors import UserError, print_user_errors

if TYPE_CHECKING:
    from torch import Tensor

    from clipreid.hub.calibrated import Known
    from clipreid.model import ReIDModel
    from clipreid.search import Embedded, Gallery, Hit

EVERY = 60.0  # seconds between two lines of progress where stderr is no terminal


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which model, and how it runs."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder, such as runs/demo, a published one, owner/name, or an untrained model by its name: tiny-clip,
    open_clip:MODEL/TAG, hf:..., timm:..., osnet:x1_0/FILE, colour"""
    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Of owner/name: branch, tag or commit (default: main)"""
    strength: float = 1.0
    """How much of the training takes part: 0 (zero-shot) to 1"""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads (default: all cores, shared by the local processes)"""

    def check(self) -> None:
        """Raises UserError for a model that cannot be had, before anything is read or loaded."""
        from clipreid.hub import check_run, find_model

        check_numbers(self, strength=(0, 1))
        if not isinstance(found := find_model(self.run, self.revision), str):
            check_run(found)

    def load(self) -> ReIDModel:
        """The model, on the GPU where there is one: of several, the one of this process."""
        import torch

        from clipreid.cli.scoring import to_device
        from clipreid.hub import load
        from clipreid.training.harness import set_threads

        set_threads(self.threads)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        model = to_device(load(self.run, revision=self.revision, strength=self.strength))
        if self.strength == 0 and len(model.widths) > 1 and os.environ.get("RANK", "0") == "0":
            _note(
                f"--strength 0 is the untrained backbone with the whole test feature ({' + '.join(model.widths)}); "
                "a row zero-shot in a table is of the projection alone where that is better, and may differ"
            )
        return model


@dataclass(frozen=True, kw_only=True)
class Embed(Loading):
    """Turn images into a gallery, a parquet file of features, for `clipreid search`.

    After an interruption the same command continues. Started several times at once (or under torchrun, as
    `python -m clipreid embed`), the processes share the work.
    """

    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGES", help_behavior_hint="(required)")]
    """Folders (with everything below them), files, globs, or data sets: synthetic, market1501:ROOT, hub:..."""
    output: Annotated[Path, arg(metavar="FILE.parquet")]
    """Gallery to write"""
    split: Annotated[str, arg(metavar="NAME")] = "gallery"
    """Of data sets: which part"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """Reads identity, camera, view from file names, as for the recipes: a built-in name such as market1501, or a
    regular expression with such groups (default: unknown)"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names: identity=name,camera=place"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas"""
    batch_size: int = 32
    """Images at a time, at most 256"""
    centre_cameras: Annotated[Literal["train", "gallery"] | None, arg(help_behavior_hint="")] = None
    """Write features from which the mean of their camera is subtracted, for other programs; gallery: the means of these
    images, train: those that --keep-means or --camera-means left in RUN. `clipreid search` can do it by itself later"""
    overwrite: bool = False
    """Replace a gallery made by another model or from other images"""

    def __call__(self) -> None:
        with print_user_errors("interrupted: repeat the same command to continue"):
            embed(self)


@dataclass(frozen=True, kw_only=True)
class Search(Loading):
    """Find the most similar images of a gallery, exactly; the queries are images or sentences."""

    gallery: Annotated[Path, arg(metavar="FILE.parquet")]
    """What `clipreid embed` wrote, with the same RUN; with --embed it is made here"""
    embed: Annotated[tuple[str, ...], arg(metavar="IMAGES", help_behavior_hint="")] = ()
    """Embed these first, where the gallery does not hold them yet: folders (with everything below them), files, globs,
    or data sets; `clipreid embed` has more flags"""
    overwrite: bool = False
    """With --embed: replace a gallery made by another model or from other images"""
    image: Annotated[tuple[Path, ...], arg(metavar="FILE", help_behavior_hint="")] = ()
    """Query images, one or several; repeatable"""
    text: Annotated[tuple[str, ...], arg(metavar="SENTENCE", help_behavior_hint="")] = ()
    """Query sentences, one or several, such as "a person with a red backpack"; the model needs a text tower"""
    top: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 10, or all where there are fewer)")] = (
        None
    )
    """How many images to find for each"""
    camera: Annotated[tuple[int, ...], arg(metavar="N", help_behavior_hint="")] = ()
    """Only images of these cameras; repeatable"""
    not_camera: Annotated[tuple[int, ...], arg(metavar="N", help_behavior_hint="")] = ()
    """No images of these cameras; unknown cameras are kept; repeatable"""
    prior: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """Of a calibrated run: the share of images that match to expect, 0..1, for the probabilities (default: that of the
    calibration)"""
    centre_cameras: Annotated[Literal["train", "gallery"] | None, arg(help_behavior_hint="")] = None
    """Subtract each camera's mean feature before comparing; gallery: the means of this gallery, train: those that
    `clipreid evaluate --centre-cameras train --keep-means` left in RUN"""
    query_camera: Annotated[tuple[int, ...], arg(metavar="N", help_behavior_hint="")] = ()
    """With --centre-cameras: the camera of the query images, one number for all or one for each (default: unknown)"""
    save: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Also save the images that were found in DIR, a new folder, and the table as DIR/found.csv"""
    json: bool = False
    """Print JSON instead of tables, and nothing else"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Also write DIR/index.html, one page with the images"""

    def __call__(self) -> None:
        search(self)


def embed(flags: Embed) -> None:
    """`clipreid embed`.

    Raises:
        UserError: the run, the images or the output cannot be used.
    """
    from clipreid.search import Gallery, find_images
    from clipreid.search import embed as work
    from clipreid.search.embedding import check_request
    from clipreid.search.find import is_data

    flags.check()
    check_request(flags.output, flags.batch_size)
    first = os.environ.get("RANK", "0") == "0"
    if flags.centre_cameras == "train":
        check_kept(flags)
    images = find_images(
        flags.images, split=flags.split, pattern=flags.pattern, columns=flags.columns, unknown=flags.unknown
    )
    model = flags.load()
    if first:
        of = f" (of data sets the split {flags.split}: --split)" if any(map(is_data, flags.images)) else ""
        print(f"{flags.run}: {len(images):,} images{of}, {model.device}", flush=True)
    done = work(
        model,
        images,
        flags.output,
        run=flags.run,
        sources=flags.images,
        pattern=flags.pattern,
        columns=flags.columns,
        unknown=flags.unknown,
        batch_size=flags.batch_size,
        overwrite=flags.overwrite,
        centring=flags.centre_cameras,
        means=kept_means(flags, model)[0] if flags.centre_cameras == "train" else None,
        threads=flags.threads,
        progress=progress() if first else None,
    )
    if first:
        print(summary(done, flags.output, model))
        if (means := Gallery.open(flags.output).centred) is not None:
            whence = "of this gallery (transductive)" if flags.centre_cameras == "gallery" else f"kept in {flags.run}"
            print(about_means(means, whence, {"images": Gallery.open(flags.output).cameras}))


def summary(done: Embedded, output: Path, model: ReIDModel) -> str:
    """What `embed` has done, in lines for people."""
    lines = []
    if done.complete:
        lines.append("nothing left to do: the gallery is there, made by this model from these images")
    if done.found:
        lines.append(f"{done.found:,} images were embedded by an earlier attempt")
    if done.stale:
        lines.append(
            f"{done.stale:,} images were embedded again: since the earlier attempt they, or others beside them, "
            "or the settings, have changed"
        )
    if done.bad:
        lines.append(f"{done.bad:,} images cannot be decoded and were left out: {done.listing}")
    if model.sides:
        lines.append(f"side information ({' and '.join(model.sides)}): every image got the mean embedding")
    if "attributes" in model.reads:
        lines.append("attributes are not known of these images: no expert took part")
    what = "there" if done.complete else "written"
    return "\n".join([*lines, f"{what}: {output}, {done.images:,} images"])


def progress() -> Callable[[int, int], None]:
    """A line on stderr: images done, images per second, time left.

    On a terminal the line is overwritten; elsewhere (a log file, a notebook) there is a line each `EVERY` seconds.
    """
    terminal, begun, shown = sys.stderr.isatty(), (0.0, -1), time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal begun, shown
        now = time.monotonic()
        begun = begun if begun[1] >= 0 else (now, done)
        if not terminal and now - shown < EVERY:
            return
        shown = now
        rate = (done - begun[1]) / max(now - begun[0], 1e-9)
        left = f", {rate:,.1f} a second, {_clock((total - done) / rate)} left" if rate else ""
        wipe = "\033[K" if terminal else ""
        end = "\n" if not terminal else "\r" if done < total else f"\r{wipe}"  # the finished line is wiped
        print(f"  {done:,} of {total:,} images{left}{wipe}", end=end, file=sys.stderr, flush=True)

    return tell


def _clock(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours}:{minutes % 60:02d}:{int(seconds) % 60:02d}"


def search(flags: Search) -> None:
    """`clipreid search`.

    Raises:
        UserError: the run, the gallery or the queries cannot be used.
    """
    from clipreid.data.images import check_images
    from clipreid.disk import check_place
    from clipreid.search import Gallery, mark_itself, write_page
    from clipreid.search.save import check_save, save_found

    if bool(flags.image) == bool(flags.text):
        both = "one of them, not both" if flags.image else "query images or query sentences"
        raise UserError(f"--image or --text: give {both}")
    check_numbers(flags, top=(1, math.inf))
    if flags.prior is not None and not 0 < flags.prior < 1:
        raise UserError(f"--prior {flags.prior:g}: a share lies between 0 and 1, for example 0.1")
    if flags.report is not None:
        check_place("--report", flags.report)
    if flags.save is not None:
        check_save(flags.save)
    if flags.overwrite and not flags.embed:
        raise UserError("--overwrite is for a gallery that is made here: give --embed, or leave it out")
    if lost := [file for file in flags.image if not file.is_file()]:
        what = "is a folder: name images, such as" if lost[0].is_dir() else "no such file; name images, such as"
        raise UserError(f"--image {lost[0]}: {what} query.jpg")
    if empty := [text for text in flags.text if not text.strip()]:
        raise UserError(f"--text {empty[0]!r}: the sentence is empty")
    if len(flags.text) > 1 and not any(len(text.split()) > 1 for text in flags.text):
        note = f"{len(flags.text)} queries of one word each; one query of several words needs quotes:"
        _note(f'{note} --text "{" ".join(flags.text)}"')
    flags.check()
    model = embed_first(flags) if flags.embed else None
    gallery = Gallery.open(flags.gallery)
    check_centring(flags, gallery)
    check_images(flags.image)
    gallery.allowed(flags.top, flags.camera, flags.not_camera)  # before the model is loaded
    if idle := gallery.without_effect(flags.not_camera):
        have = ", ".join(map(str, sorted(set(gallery.cameras.tolist()) - {-1})))
        names = ", ".join(map(str, idle))
        _note(f"--not-camera {names} leaves nothing out: {flags.gallery} has the cameras {have}")
    model = model or flags.load()
    gallery.check(model)
    how = centring(flags, gallery, model)
    features, part = _ask(flags, model)
    found = gallery.search(features, flags.top, part=part, cameras=flags.camera, not_cameras=flags.not_camera, **how)
    found = [mark_itself(hits, query) for hits, query in zip(found, flags.image, strict=True)] if flags.image else found
    queries = flags.image or flags.text
    plain = flags.image and not how  # a calibration is one of images and of features as they are
    known = known_calibration(flags.run, model, flags.revision) if plain else None
    if known is not None:
        found = [with_probabilities(hits, known, flags.prior) for hits in found]
    elif flags.prior is not None:
        raise UserError(
            "--prior is for image queries of a calibrated run without --centre-cameras: clipreid calibrate makes one"
        )
    page = write_page(flags.report, gallery, queries, found) if flags.report is not None else None
    if flags.save is not None:
        table, missing = save_found(flags.save, gallery, queries, found)
        if missing:
            _note(f"{missing:,} of the images found are gone or cannot be read: they are in the table alone")
    if flags.json:
        print(_as_json(flags, gallery, found, known))
        return
    for query, hits in zip(queries, found, strict=True):
        print(f"{query}\n\n{_table(hits)}\n", flush=True)
        if known is not None:
            print(f"{answer(hits, known, gallery, flags.prior)}\n", flush=True)
    for file in (page, table if flags.save is not None else None):
        if file is not None:
            print(f"written: {file}")


def _note(text: str) -> None:
    """To stderr: stdout may be JSON that another program reads."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def _ask(flags: Search, model: ReIDModel) -> tuple[Tensor, str | None]:
    """Features of the queries, and which part of the gallery's they are compared with."""
    if flags.image:
        return model.embed(flags.image), None
    return model.embed_text(flags.text, say=lambda note: print(f"note: {note}", file=sys.stderr)), "projection"


def _table(hits: Sequence[Hit]) -> str:
    from clipreid.evaluation.tables import format_table, similarity_digits

    digits = similarity_digits((hit.similarity for hit in hits), least=4)
    chances = [None if hit.probability is None else f"{100 * hit.probability:.1f}%" for hit in hits]
    return format_table(
        {
            "rank": hit.rank,
            "similarity": f"{hit.similarity:.{digits}f}",
            **({"probability": chance} if any(chances) else {}),
            "path": _short(hit.path) + (" (the query itself)" if hit.itself else ""),
            "identity": hit.identity,
            "camera": hit.camera,
        }
        for hit, chance in zip(hits, chances, strict=True)
    )


def _short(path: str) -> str:
    """A path below the current folder, relative to it; others unchanged."""
    return path.removeprefix(os.getcwd().rstrip(os.sep) + os.sep)


def _as_json(flags: Search, gallery: Gallery, found: Sequence[Sequence[Hit]], known: Known | None) -> str:
    kind = "image" if flags.image else "text"
    entries: list[dict[str, Any]] = [
        {kind: str(query), "results": [vars(hit) for hit in hits]}
        | ({} if known is None else {"nobody": is_nobody(hits, known)})
        for query, hits in zip(flags.image or flags.text, found, strict=True)
    ]
    # other programs read these keys: none of them is renamed
    record = {"run": flags.run, "gallery": str(flags.gallery), "pictures": len(gallery), "queries": entries}
    about = {} if known is None else {"calibration": threshold_of(known, flags.prior)}
    return json.dumps(record | about, indent=1)
