"""Which attributes matter: accuracy with and without their experts, and what they could tell apart at best.

Q queries, G gallery images, n rows of a regression, k effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clipreid.data import ReIDData
from clipreid.data.attributes import attribute_values, code, several
from clipreid.data.crops import Attributes
from clipreid.errors import UserError
from clipreid.evaluation.columns import code_columns, read_table
from clipreid.evaluation.protocols import find_junk, get_protocol
from clipreid.evaluation.report import Report
from clipreid.evaluation.score import Scored, score
from clipreid.hooks.experts import AttributeExperts

if TYPE_CHECKING:
    from clipreid.model import ReIDModel

METRICS = ("ap", "rank1")  # of one query
WORST = 10  # wrong images of each query that count as confusions
EVERY = "all experts"


# Experts off -------------------------------------------------------------------------------------------------------


def ablations(
    data: ReIDData, model: ReIDModel, *, progress: Callable[[str], None] | None = None, **how: Any
) -> Iterator[tuple[str, Scored]]:
    """Scores the model with all its experts (""), without those of one attribute after the other (its name), and
    without any (`EVERY`). Of an attribute the experts of all its values are off, in query and gallery.

    progress: called with each name before it is scored. how: as for `evaluation.score.score`.

    Raises:
        UserError: a model without attribute experts; queries that are captions, or random galleries; no attribute.
    """
    experts = next((hook for hook in model.hooks.values() if isinstance(hook, AttributeExperts)), None)
    rules = get_protocol(data.protocol)
    if experts is None:
        raise UserError("this run has no attribute experts to switch off: train one with recipes/mosaic.py")
    if rules.captions or rules.draws:
        raise UserError(f"{data.name} is scored by {rules.name}: attributes are analysed image against image")
    values = attribute_values([each for split in tested(data) for each in split.attributes])
    trained = set(experts.codes.tolist())
    codes = {name: {code(name), *(code(name, value) for value in each)} & trained for name, each in values.items()}
    codes = {name: each for name, each in codes.items() if each}
    if not codes:
        raise UserError(
            f"{data.name}: no attribute that the run has an expert for is known of the test images (known: "
            f"{', '.join(values) or 'none'})"
        )
    try:
        for name, off in {"": set(), **codes, EVERY: trained}.items():
            if progress is not None:
                progress(name)
            experts.muted = frozenset(off)
            yield name, score(data, model, **how)
    finally:
        experts.muted = frozenset()


def tested(data: ReIDData) -> list[Any]:
    return [data.splits[name] for name in ("query", "gallery") if name in data.splits]


def differences(on: Report, off: Report) -> dict[str, np.ndarray]:
    """What experts gain each query, [Q] by metric: with them minus without; NaN for queries that are not scored."""
    found = {"ap": on.per_query["ap"] - off.per_query["ap"]}
    first = [np.where(np.isnan(r.per_query["first_rank"]), np.nan, r.per_query["first_rank"] <= 1) for r in (on, off)]
    return found | {"rank1": first[0] - first[1]}


# Regression ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What the experts of an attribute (of queries with a value of it; "" = with any) gain.

    effect, low, high: mean gain and its 95 % interval, 0..1. p: that there is none; p_holm: corrected for all effects
    of the same table. queries, identities: how many it rests on.
    """

    attribute: str
    value: str
    metric: str
    effect: float
    low: float
    high: float
    p: float
    p_holm: float
    queries: int
    identities: int


def effects(
    gains: Mapping[str, np.ndarray],
    attributes: Sequence[Attributes],
    identities: Sequence[str],
    metric: str,
    by_value: bool = False,
) -> list[Effect]:
    """Gains regressed on attributes, by least squares with errors clustered by identity.

    Each query has a row for each attribute that is known of it: what it gains by the experts of that attribute. Columns
    are indicators of the attribute, or of its value; there is no intercept. Queries of one identity are alike, and so
    are the rows of one query: errors are clustered by identity (Liang and Zeger, Biometrika 1986; t distribution with
    one degree of freedom less than identities). p values are corrected by Holm (Scand. J. Statistics 1979).

    Args:
        gains: attribute -> [Q], NaN where a query is not scored (`differences`).
        attributes: of each query [Q].
        identities: of each query [Q].
        metric: its name, for the result.

    Raises:
        UserError: statsmodels is not installed; fewer than two identities.
    """
    sm, multipletests = _statsmodels()
    rows, design, who = [], [], []
    for name, gain in gains.items():
        for query, known in enumerate(attributes):
            if name in known and not np.isnan(gain[query]):
                rows.append(float(gain[query]))
                design.append([(name, part) for part in several(known[name])] if by_value else [(name, "")])
                who.append(identities[query])
    if len(set(who)) < 2:
        raise UserError("attributes are known of the queries of fewer than two identities: nothing can be compared")
    columns = list(dict.fromkeys(sorted(pair for pairs in design for pair in pairs)))
    place = {pair: nth for nth, pair in enumerate(columns)}
    x = np.zeros((len(rows), len(columns)))  # [n, k]
    for nth, pairs in enumerate(design):
        x[nth, [place[pair] for pair in pairs]] = 1
    groups = np.unique(who, return_inverse=True)[1]
    fitted = sm.OLS(np.array(rows), x).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # a gain that is the same for all has no error
        p = np.where(fitted.bse > 0, fitted.pvalues, (fitted.params == 0).astype(float))
        bounds = np.nan_to_num(fitted.conf_int(), nan=0.0)
    bounds = np.where((fitted.bse > 0)[:, None], bounds, fitted.params[:, None])
    corrected = multipletests(p, method="holm")[1]
    found = []
    for nth, (name, value) in enumerate(columns):
        here = x[:, nth] > 0
        found.append(
            Effect(
                attribute=name,
                value=value,
                metric=metric,
                effect=float(fitted.params[nth]),
                low=float(bounds[nth, 0]),
                high=float(bounds[nth, 1]),
                p=float(p[nth]),
                p_holm=float(corrected[nth]),
                queries=int(here.sum()),
                identities=len(np.unique(groups[here])),
            )
        )
    return found


def _statsmodels() -> tuple[Any, Any]:
    try:
        import statsmodels.api as sm  # of the extra `analysis`
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise UserError("the analysis needs statsmodels: pip install 'clipreid[analysis]'") from error
    return sm, multipletests


# What attributes could do --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """What an attribute tells apart by itself, 0..1 (NaN where nothing is comparable).

    separates: share of the pairs of test identities that differ in it. resolves: share of the confusions of another
    model in which query and wrong image differ in it. alone: the same, where they differ in nothing else that is known.
    pairs, confusions: how many; those of which one side is unknown count as not different.
    """

    separates: float
    resolves: float
    alone: float
    pairs: int
    confusions: int


def true_importance(found: Scored, protocol: str) -> dict[str, Importance]:
    """What each attribute could do for a model that reads it without error, from the images' own attributes.

    found: a model that was told none, such as zero-shot. Its confusions are the wrong images that it finds more like
        the query than some right one, at most `WORST` of each query.
    """
    names = list(attribute_values([*found.query.attributes, *found.gallery.attributes]))
    known = {"query": found.query.attributes, "gallery": found.gallery.attributes}
    unlike = [
        {name for name in names if differ(known["query"][q], known["gallery"][g], name)}
        for q, g in confusions(found, protocol)
    ]
    who = np.array([*found.query.identities, *found.gallery.identities])
    every = [*found.query.attributes, *found.gallery.attributes]
    first = [every[row] for row in np.unique(who, return_index=True)[1]]
    pairs = [(a, b) for nth, a in enumerate(first) for b in first[:nth]]
    share = lambda flags: float(np.mean(flags)) if len(flags) else float("nan")  # noqa: E731
    return {
        name: Importance(
            share([differ(a, b, name) for a, b in pairs]),
            share([name in each for each in unlike]),
            share([each == {name} for each in unlike]),
            len(pairs),
            len(unlike),
        )
        for name in names
    }


def differ(a: Attributes, b: Attributes, name: str) -> bool:
    """Whether an attribute is known of both and they have no value of it in common."""
    return name in a and name in b and not {*several(a[name])} & {*several(b[name])}


def confusions(found: Scored, protocol: str) -> list[tuple[int, int]]:
    """(query, gallery image) of different identities, more similar than some valid match of the query; the first
    `WORST` of each query."""
    tables = read_table(found.query.metadata(), "query"), read_table(found.gallery.metadata(), "gallery")
    q, g = code_columns(*tables)
    by_rule, own = find_junk(get_protocol(protocol), q, g)  # [Q, G]
    right, similarity = q["identity"][:, None] == g["identity"], found.similarity()
    usable = ~by_rule & ~own
    worst = similarity.masked_fill(~(right & usable), torch.inf).amin(1, keepdim=True)  # [Q, 1]; inf: no match
    wrong = similarity.masked_fill(~(~right & usable & (similarity > worst)), -torch.inf)
    values, places = wrong.topk(min(WORST, wrong.shape[1]), dim=1)
    return [(row, int(places[row, nth])) for row, nth in (values > -torch.inf).nonzero().tolist()]


def rank_correlation(found: Mapping[str, float], true: Mapping[str, float]) -> tuple[float, float, int]:
    """Spearman's rho of two importances by name, its p value, and how many names both have; NaN under three names."""
    from scipy.stats import spearmanr  # comes with statsmodels

    names = [name for name in found if name in true and np.isfinite(true[name])]
    if len(names) < 3 or len({true[name] for name in names}) < 2 or len({found[name] for name in names}) < 2:
        return float("nan"), float("nan"), len(names)
    rho = spearmanr([found[name] for name in names], [true[name] for name in names])
    return float(rho.statistic), float(rho.pvalue), len(names)
