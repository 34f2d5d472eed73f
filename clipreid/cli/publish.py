"""`clipreid publish`: the flags; the work is in `clipreid.hub.package` and `clipreid.hub.publish`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Upload a finished run to the Hugging Face Hub, with a model card made from it.

    Uploaded are the adapter (or the tuned tower), the necks, settings, figures, curves and the card; never checkpoints,
    crops, names of identities or paths of this machine. Publishing again updates the repository, and continues an
    interrupted upload.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder, such as runs/demo"""
    repository: Annotated[Positional[str], arg(metavar="OWNER/NAME")]
    """Where to: your user name on the Hub, or an organisation, and a name"""
    private: bool = False
    """Make the repository private"""
    dry_run: bool = False
    """Print the card and the list of files; no network, no token"""
    include_identities: bool = False
    """Also the prompts, text bank and classifiers of single identities, without their names"""
    include_crops: bool = False
    """Also RUN/report/ranked_lists.png, which shows crops; refused for data that may not be redistributed"""
    license: Annotated[str | None, arg(metavar="ID", help_behavior_hint="")] = None
    """Licence of what is published, such as apache-2.0 (default: the backbone's, where it is known)"""
    base_model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Public name of the backbone's weights, such as hf:openai/clip-vit-base-patch16, for a run that took them from a
    folder or file"""

    def __call__(self) -> None:
        publish(self)


def publish(flags: Publish) -> None:
    """`clipreid publish`.

    Raises:
        UserError: a run, a name or a token that cannot be used, or a refusal by the Hub.
    """
    from clipreid.hub.checks import read_settings
    from clipreid.hub.files import METRICS
    from clipreid.hub.package import CARD, describe_plain, file_list, package
    from clipreid.hub.publish import check_account, check_repository, describe, publish_command, upload

    check_repository(flags.repository)
    read_settings(flags.run)  # raises before the Hub is asked
    again = publish_command(flags.run, flags.repository, *_given(flags))
    if not flags.dry_run:
        check_account(flags.repository, again)
    files = package(
        flags.run,
        flags.repository,
        include_identities=flags.include_identities,
        include_crops=flags.include_crops,
        licence=flags.license,
        base_model=flags.base_model,
    )
    if flags.dry_run:
        card = files[CARD]
        assert isinstance(card, bytes)
        shown = f"{card.decode()}\nwould be uploaded to {flags.repository}:\n{file_list(files)}"
        print(f"{shown}\n\n{describe_plain(files)}")
        return
    if METRICS not in files:
        print(f"note: {flags.run} was never scored (clipreid evaluate {flags.run}), and the card has no figures")
    print(f"uploading to {flags.repository}:\n{file_list(files)}", flush=True)
    done = upload(files, flags.repository, flags.private, again)
    print(f"\n{describe(done, flags.repository)}\n{describe_plain(files)}")


def _given(flags: Publish) -> list[str]:
    """The flags to repeat."""
    words = []
    for name in ("private", "include_identities", "include_crops", "license", "base_model"):
        value, flag = getattr(flags, name), f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, value] if value else []
    return words
