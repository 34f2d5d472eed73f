"""What a check finds: faults and notes, as a table for people and as a dict for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

SHOWN = 10  # files of one kind that the table names
READER = "note of the reader"  # the kind of what a reader noticed


@dataclass(frozen=True)
class Finding:
    """One kind of trouble. fault: figures would be wrong or the set cannot be used; note: good to know."""

    severity: Literal["fault", "note"]
    kind: str
    explanation: str
    items: tuple[str, ...] = ()  # the files, pairs of files or identities, each with what is particular to it


def within(finding: Finding, share: float, bound: float) -> Finding:
    """A note as it is, up to this share (0..1) of the images; a fault beyond."""
    if share <= bound:
        return finding
    why = f"{finding.explanation}; more than {100 * bound:g} % make the set unfit"
    return replace(finding, severity="fault", explanation=why)


@dataclass(frozen=True)
class CheckReport:
    """Everything that was found. `fit` is the verdict, `str(report)` the table, `to_dict()` the same for machines."""

    name: str
    protocol: str  # "" where the data set could not be read
    root: str
    splits: tuple[dict[str, Any], ...]  # images, identities, cameras and sizes of each
    findings: tuple[Finding, ...]
    official: bool = False  # a published data set, with its published counts

    @property
    def fit(self) -> bool:
        """Whether there is no fault: the set can be trained and scored on by its protocol."""
        return not any(finding.severity == "fault" for finding in self.findings)

    def with_findings(self, more: Iterable[Finding]) -> CheckReport:
        """The same report with further findings, faults first."""
        found = sorted([*self.findings, *more], key=lambda finding: finding.severity != "fault")
        return replace(self, findings=tuple(found))

    def to_dict(self) -> dict[str, Any]:
        findings = [vars(finding) | {"items": list(finding.items)} for finding in self.findings]
        head = {"name": self.name, "protocol": self.protocol, "root": self.root, "fit": self.fit}
        return head | {"splits": list(self.splits), "findings": findings}

    def __str__(self) -> str:
        lines = [f"{self.name}: " + (f"protocol {self.protocol}" if self.protocol else "cannot be read")]
        lines += [f"files are below {self.root}"] if self.root else []
        for split in self.splits:
            line = "  {split:8s}{pictures:9,d} images {identities:7,d} identities {cameras:4d} cameras  {sizes}"
            lines.append(line.format(**split))
        for finding in self.findings:
            number = f" ({len(finding.items):,d})" if finding.items else ""
            kind = "" if finding.kind == READER else f" {finding.kind}{number}:"
            lines.append(f"\n{finding.severity}:{kind} {finding.explanation}")
            lines += [f"    {item}" for item in finding.items[:SHOWN]]
            if len(finding.items) > SHOWN:
                lines.append(f"    ... and {len(finding.items) - SHOWN:,d} more")
        kinds = Counter(finding.severity for finding in self.findings)
        verdict = "fit" if self.fit else "NOT fit"
        protocol = f" for protocol {self.protocol}" if self.protocol else ""
        return "\n".join(
            [*lines, "", f"{verdict}{protocol}: {_kinds(kinds['fault'], 'fault')}, {_kinds(kinds['note'], 'note')}"]
        )


def _kinds(number: int, what: str) -> str:
    return f"{number} kind{'s' if number != 1 else ''} of {what}s"
