"""Methods side by side: spread over seeds, intervals over images, paired tests, and what may be called best.

The unit is the image: pixels of one image are not independent, so neither an interval nor a test counts pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

from csamnet.config import VARIANTS, RunConfig
from csamnet.metrics import COUNTS, average_precision, from_counts, roc_auc
from csamnet.pages.complexity import complexity, full_size
from csamnet.pages.measured import Evaluation, check_comparable, read_evaluation
from csamnet.pages.tables import LEVEL
from csamnet.paths import RESULTS
from csamnet.results import MEASURES, find_runs, read_config, read_summary

RESAMPLES = 2000  # of the images, for an interval


def collect(dataset: str, profile: str, results: Path | str = RESULTS, kind: str = "") -> dict[str, list[Path]]:
    """The runs of a profile that were tested on a data set, on `real` or `sample` data: model -> a folder a seed."""
    runs: dict[str, list[Path]] = {}
    for folder in find_runs(results, dataset=dataset, profile=profile):
        summary = read_summary(folder)
        if summary and kind in ("", summary["data"]["kind"]):
            runs.setdefault(read_config(folder).model, []).append(folder)
    return runs


def compare(runs: Mapping[str, Sequence[Path]], reference: str = "CSAMNet-S", split: str = "test") -> pd.DataFrame:
    """A row a model of `runs` (model -> a run folder a seed). InputError where they do not belong together.

    Columns: `model`, `seeds`, `images`, `parameters`, `multiply_adds` (of a 256 x 256 image); and for each of
    MEASURES, called m: `m` pooled over the test pixels, mean over seeds; `m_sd` over seeds; `m_low` and `m_high`,
    the 95 % bootstrap interval over images; `m_mean` over images; `m_p`, of the paired test of m over images against
    `reference`, corrected for the number of models; `m_best`, whether m is highest, pooled and as the mean over
    images, and the test tells it from all others.
    """
    measured = {model: [read_evaluation(folder, split) for folder in folders] for model, folders in runs.items()}
    check_comparable(measured)
    table = pd.DataFrame([_row(model, seeds) for model, seeds in measured.items()])
    images = {model: over_images(seeds) for model, seeds in measured.items()}
    for key in MEASURES:
        values = {model: means[key] for model, means in images.items()}
        table[f"{key}_mean"] = [values[model].mean() for model in runs]
        table[f"{key}_p"] = against(values, reference).to_numpy() if reference in values else np.nan
        best = table["model"][table[f"{key}_mean"].fillna(-1).idxmax()]
        others = against(values, best).drop(best)
        told = len(others) and (others < LEVEL).all() and best == table["model"][table[key].fillna(-1).idxmax()]
        table[f"{key}_best"] = (table["model"] == best) & bool(told)
    return table


def _row(model: str, seeds: Sequence[Evaluation]) -> dict:
    """What does not depend on the other models."""
    row = {"model": model, "seeds": len(seeds), "images": len(seeds[0].images), **costs(seeds[0].config)}
    for key, ends in intervals(seeds).items():
        values = _pooled(seeds, key)
        row |= {key: values.mean(), f"{key}_sd": values.std(), f"{key}_low": ends[0], f"{key}_high": ends[1]}
    return row


def costs(config: RunConfig) -> dict[str, int]:
    """Parameters and multiply-adds of a run's network; the threshold on colour has none."""
    if config.model == "Otsu":
        return {"parameters": 0, "multiply_adds": 0}
    counted = complexity(full_size(config.model))
    return {key: counted[key] for key in ("parameters", "multiply_adds")}


def _pooled(seeds: Sequence[Evaluation], key: str) -> pd.Series:
    return pd.Series([one.summary["pooled"][key] for one in seeds], dtype=float)


def over_images(seeds: Sequence[Evaluation]) -> pd.DataFrame:
    """MEASURES of each image, mean over seeds, by the image's name."""
    tables = [one.images.set_index("name")[[*MEASURES]] for one in seeds]
    return pd.concat(tables).groupby(level=0, sort=False).mean()


def intervals(seeds: Sequence[Evaluation], resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the pooled measures, the images drawn anew with replacement (Efron 1979).

    All seeds see the same draws, and their values are averaged. AP and AUC are NaN where a run has no `scores.npz`;
    its bins are coarse, and what they miss of the pooled value is added to both ends.
    """
    count = len(seeds[0].images)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)  # (resamples, images)
    draws = np.vstack([draws, np.ones(count, int)])  # and the images as they are
    drawn = np.mean([_drawn(draws, one.images[[*COUNTS]].to_numpy(), one.scores) for one in seeds], axis=0)
    ends = np.percentile(drawn[:-1], (2.5, 97.5), axis=0) if count > 1 else np.full((2, len(MEASURES)), np.nan)
    return {key: tuple(ends[:, i] + _pooled(seeds, key).mean() - drawn[-1, i]) for i, key in enumerate(MEASURES)}


def _drawn(draws: np.ndarray, counts: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """MEASURES of each draw of images, (resamples, 4), from `counts` (images, 4) and `scores` (images, 2, bins)."""
    pixels = pd.DataFrame([from_counts(*row) for row in (draws @ counts).tolist()])[["miou", "dice"]].to_numpy()
    if scores is None:
        return np.hstack([pixels, np.full_like(pixels, np.nan)])
    pooled = np.tensordot(draws, scores, 1)  # (resamples, 2, bins)
    return np.column_stack([pixels, average_precision(pooled), roc_auc(pooled)])


def against(values: Mapping[str, pd.Series], reference: str) -> pd.Series:
    """p of each model's difference to `reference` over the images, corrected after Holm (1979); NaN for itself.

    The sign of each image's difference is exchanged: all ways for up to 14 images, else 16,384 at random.
    """
    p = {model: paired(series - values[reference]) for model, series in values.items() if model != reference}
    return pd.Series(holm(p) | {reference: np.nan})[[*values]]


def paired(differences: pd.Series) -> float:
    """Two-sided p of a mean difference of zero, by exchanging signs. NaN below two images."""
    found = differences.dropna().to_numpy()
    if len(found) < 2 or not found.any():
        return float("nan") if len(found) < 2 else 1.0
    test = permutation_test((found,), np.mean, permutation_type="samples", vectorized=False,
                            n_resamples=2**14, rng=0)  # fmt: skip
    return float(test.pvalue)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction; NaN stays and is not counted."""
    ranked = pd.Series(p, dtype=float).dropna().sort_values()
    factors = np.arange(len(ranked), 0, -1)
    return dict(p) | np.minimum(ranked * factors, 1).cummax().to_dict()


GROUPS = {"dcf": "Detail-context fusion", "csam": "Cross-scale attention"}


def label_variants(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`compare`'s table of an ablation with what each model changes: `group` and `label`, the full network first."""
    rows = []
    for model in table["model"]:
        variant = model.removeprefix(f"{reference}-")
        group = GROUPS.get(next(iter(VARIANTS.get(variant, ""))), "Single parts") if variant in VARIANTS else "Size"
        label = variant.replace("CSAMNet-", "size ").replace("-", " ")
        rows.append(("", "full network") if model == reference else (group, label))
    groups = pd.DataFrame(rows, columns=["group", "label"], index=table.index)
    return table.assign(**groups, own=table["model"] == reference).sort_values("own", ascending=False, kind="stable")
