"""Every pair of query and gallery image, in chunks of queries: how similar, and whether a match or a mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from clipreid.evaluation.columns import Columns, Table, code_columns, read_table
from clipreid.evaluation.copies import add_digests
from clipreid.evaluation.protocols import Predicate, Protocol, find_junk, get_protocol
from clipreid.evaluation.similarity import Matrix, chunk_size, similarities


@dataclass(frozen=True)
class Pairs:
    """One chunk of queries against the whole gallery; what is neither positive nor negative is junk."""

    similarity: Tensor  # [c, G], free to be overwritten
    positive: Tensor  # bool [c, G]: valid matches
    negative: Tensor  # bool [c, G]: other identities
    query: Columns  # [c] each
    gallery: Columns  # [G] each


def pair_blocks(
    query_features: Matrix | None,
    gallery_features: Matrix | None,
    query: Table,
    gallery: Table,
    protocol: str | Protocol | Predicate = "market1501",
    similarity: Matrix | None = None,
    chunk: int | None = None,
) -> Callable[[], Iterator[Pairs]]:
    """Arguments and errors as for `evaluate`. Each call of the result starts another walk over all pairs."""
    rules = get_protocol(protocol)
    tables = read_table(query, "query"), read_table(gallery, "gallery")
    q, g = code_columns(*add_digests(*tables, query_features, gallery_features))
    sizes = len(q["identity"]), len(g["identity"])
    size = chunk_size(chunk, sizes)

    def walk() -> Iterator[Pairs]:
        start, theirs = 0, g
        for block in similarities(query_features, gallery_features, similarity, sizes, size):
            ours = q.rows(start, start + len(block)).to(block.device)
            theirs = theirs.to(block.device)
            rule, own = find_junk(rules, ours, theirs)
            relevant, kept = ours["identity"][:, None] == theirs["identity"], ~(rule | own)  # [c, G]
            yield Pairs(block, relevant & kept, kept & ~relevant, ours, theirs)
            start += len(block)

    return walk
