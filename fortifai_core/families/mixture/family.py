"""Gaussian mixtures under recursive training (ForTIFAI, Section 4.7, Figure 8 and Algorithm 2).

Algorithm 2: fit a mixture, sample N points from it, drop those above the gamma quantile of their likelihood under
it, fit the next one to the rest. The paper names neither its data nor its "appropriate parameters" and speaks of
two classes that are both re-sampled: here each class has a mixture of its own, and the quantile is taken within a
class. What is dropped depends on the sample and on the model that drew it, so dropping is part of the next fit;
M_0 is fitted to all of the real data.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from fortifai_core.errors import DataError, StageFailed
from fortifai_core.families.base import Arrays, FamilyConfig, Fitted, Mask, Progress, ThresholdMask
from fortifai_core.families.mixture import mixture
from fortifai_core.families.mixture.mixture import Mixture
from fortifai_core.seeds import derive_seed
from fortifai_core.settings import Frozen, Inconsistent


class Moons(Frozen):
    """Two interleaved half circles, one a class (`sklearn.datasets.make_moons`)."""

    type: Literal["moons"] = "moons"
    samples: int = Field(1000, ge=20, le=1_000_000, description="Points, half of them of each class.")
    noise: float = Field(0.06, ge=0, le=1, description="Standard deviation of the noise added to every point.")


class Blobs(Frozen):
    """Round clusters; cluster c is of class c modulo `classes` (`sklearn.datasets.make_blobs`)."""

    type: Literal["blobs"] = "blobs"
    samples: int = Field(1000, ge=20, le=1_000_000, description="Points, as many of each cluster.")
    clusters: int = Field(6, ge=1, le=100, description="Clusters.")
    classes: int = Field(2, ge=1, le=20, description="Classes that the clusters are dealt out to in turn.")
    dimensions: int = Field(2, ge=1, le=100, description="Coordinates of a point.")
    spread: float = Field(0.6, gt=0, description="Standard deviation within a cluster; centres lie in a box of 20.")


class Table(Frozen):
    """A user's own numbers: a .csv or .parquet file."""

    type: Literal["table"] = "table"
    file: str = Field(description="Path of a .csv (with a header) or .parquet file.")
    columns: list[str] | None = Field(None, min_length=1, description="Columns to use; by default all numeric ones.")
    label: str | None = Field(None, description="Column that holds the class of each row; or none.")
    standardize: bool = Field(True, description="Give every column mean 0 and standard deviation 1.")
    max_rows: int | None = Field(None, ge=20, description="Use only the first so many rows.")


# What each measure is; all but the last are means over classes, weighted by the classes' shares.
MEASURES = {
    "covariance-trace": "Trace of the covariance of a class's whole mixture",
    "component-survival": "Component survival: share of M0's components that still have one near them",
    "sliced-wasserstein": "Sliced Wasserstein distance of the samples from the real data",
    "real-log-likelihood": "Log-likelihood of the real data, nats a point",
    "component-trace": "Trace of a component's own covariance, by weight",
    "class-agreement": "Share of the samples whose nearest real point is of their class",
}
FIT_MEASURES = {
    "live-fraction": "Share of the samples that a fit was made from, the rest being dropped",
    "em-converged": "Share of the fits whose EM converged",
}
MixtureData = Annotated[Moons | Blobs | Table, Field(discriminator="type")]


class GmmConfig(FamilyConfig):
    """A Gaussian mixture for each class, fitted by EM to the samples of the mixture before it."""

    data_fields: ClassVar[frozenset[str]] = frozenset({"data"})
    measures: ClassVar[dict[str, str]] = {**MEASURES, **FIT_MEASURES}
    headline: ClassVar[str] = "sliced-wasserstein"
    path_fields: ClassVar[frozenset[str]] = frozenset({"file"})

    type: Literal["gmm"] = "gmm"
    data: MixtureData = Field(default_factory=Moons, description="The real data.")
    components: int = Field(8, ge=1, le=200, description="Components of each class's mixture.")
    covariance: Literal["full", "tied", "diag", "spherical"] = Field("full", description="Shape of a component.")
    regularization: float = Field(1e-6, gt=0, lt=1, description="Added to the diagonal of every covariance.")
    iterations: int = Field(200, ge=1, le=10_000, description="EM steps at most.")
    restarts: int = Field(1, ge=1, le=100, description="Initialisations (k-means) of which the best is kept.")
    samples: int | None = Field(None, ge=20, description="Points sampled in a generation; by default as many as real.")
    projections: int = Field(128, ge=1, le=10_000, description="Directions of the sliced Wasserstein distance.")
    survival_radius: float = Field(
        2.0, gt=0, description="A component survives while one has its mean within so many of its own sigmas."
    )

    @model_validator(mode="after")
    def _enough_points(self) -> GmmConfig:
        if isinstance(self.data, Table):
            return self
        classes = 2 if isinstance(self.data, Moons) else self.data.classes
        if isinstance(self.data, Blobs) and classes > self.data.clusters:
            remedy = f"there are only {self.data.clusters} clusters to be dealt out; lower it"
            raise Inconsistent("family.data.classes", classes, remedy)
        fewest = min(self.data.samples, self.samples or self.data.samples) // classes
        if fewest < 2 * self.components:
            remedy = f"a class has only {fewest} points for them; lower it, or raise family.data.samples"
            raise Inconsistent("family.components", self.components, remedy)
        return self

    def sample_count(self, real: int) -> int:
        return self.samples or real

    @property
    def seeded_data(self) -> bool:
        return not isinstance(self.data, Table)


class Gmm(Fitted[GmmConfig]):
    """Mixtures as arrays: `weights` (c, k), `means` (c, k, d), `covariances` (c, k, d, d), `share` (c,) of each class.

    Data and samples are `x` (n, d) float64 and `label` (n,) int64, the number of the class.
    """

    def real(self, *, seed: int) -> Arrays:
        """Moons or blobs. A table is read by whoever may open files.

        Raises:
            DataError: the data are a table.
        """
        from sklearn.datasets import make_blobs, make_moons

        data, state = self.config.data, derive_seed("gmm-data", seed) % 2**32
        if isinstance(data, Moons):
            x, label = make_moons(n_samples=data.samples, noise=data.noise, random_state=state)
        elif isinstance(data, Blobs):
            x, cluster = make_blobs(
                n_samples=data.samples,
                n_features=data.dimensions,
                centers=data.clusters,
                cluster_std=data.spread,
                random_state=state,
            )
            label = cluster % data.classes
        else:
            raise DataError("family.data.file", data.file, "a table is not drawn, but read")
        return {"x": np.asarray(x, dtype=np.float64), "label": np.asarray(label, dtype=np.int64)}

    def fit(
        self, data: Arrays, *, mask: Mask, generation: int, seed: int, previous: Arrays | None, progress: Progress
    ) -> tuple[Arrays, dict[str, float]]:
        """One mixture a class, by EM; see `Family.fit`.

        Raises:
            StageFailed: too few points of a class are left for its components.
        """
        classes = np.unique(data["label"])
        fitted: list[Mixture] = []
        shares, converged, live, total = [], 0, 0, 0
        for number, name in enumerate(classes):
            points = data["x"][data["label"] == name]
            shares.append(len(points) / len(data["x"]))
            kept = points
            if previous is not None and isinstance(mask, ThresholdMask):
                density = mixture.log_density(_mixture(previous, number), points)
                kept = points[density <= np.quantile(density, mask.gamma)]
            if len(kept) < self.config.components:
                raise StageFailed(
                    f"g{generation}: {len(kept)} points of class {number} are left for {self.config.components} "
                    "components; lower family.components, or raise family.samples or gamma"
                )
            one, settled = mixture.fit(
                kept,
                components=self.config.components,
                covariance=self.config.covariance,
                regularization=self.config.regularization,
                iterations=self.config.iterations,
                restarts=self.config.restarts,
                seed=derive_seed("gmm-fit", seed, generation, number),
            )
            fitted.append(one)
            converged, live, total = converged + settled, live + len(kept), total + len(points)
            progress(number + 1, len(classes), "classes")
        parameters: Arrays = {
            "weights": np.stack([one.weights for one in fitted]),
            "means": np.stack([one.means for one in fitted]),
            "covariances": np.stack([one.covariances for one in fitted]),
            "share": np.asarray(shares, dtype=np.float64),
        }
        return parameters, {"live-fraction": live / total, "em-converged": converged / len(classes)}

    def sample(self, parameters: Arrays, *, count: int, generation: int, seed: int) -> Arrays:
        """`count` points, of each class its share of the real data."""
        # the cumulated shares, rounded: adds up to `count`, and the classes keep their sizes for ever
        ends = np.rint(np.cumsum(parameters["share"]) * count).astype(int)
        sizes = np.diff(ends, prepend=0)
        generator = np.random.default_rng(derive_seed("gmm-sample", seed, generation))
        parts = [
            mixture.draw(_mixture(parameters, number), count=int(size), generator=generator)
            for number, size in enumerate(sizes)
        ]
        return {"x": np.concatenate(parts), "label": np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)}

    def measure(
        self, parameters: Arrays, sample: Arrays, real: Arrays, *, generation: int, seed: int, first: Arrays
    ) -> dict[str, float]:
        """The numbers that `MEASURES` names."""
        from scipy.spatial import cKDTree

        along = mixture.directions(
            self.config.projections, dimensions=real["x"].shape[1], seed=derive_seed("gmm-directions", 0)
        )
        names = list(MEASURES)[:5]
        rows = []
        classes = np.unique(real["label"])
        for number in range(len(classes)):
            now, before = _mixture(parameters, number), _mixture(first, number)
            truth = real["x"][real["label"] == classes[number]]
            drawn = sample["x"][sample["label"] == number]
            alive = mixture.surviving(before, now, radius=self.config.survival_radius)
            rows.append(
                (
                    float(np.trace(mixture.total_covariance(now))),
                    alive / len(before.weights),
                    mixture.sliced_wasserstein(drawn, truth, along=along),
                    float(mixture.log_density(now, truth).mean()),
                    float(np.einsum("k,kii->", now.weights, now.covariances)),
                )
            )
        means = np.asarray(parameters["share"]) @ np.asarray(rows)
        measured = {name: float(value) for name, value in zip(names, means, strict=True)}
        if len(classes) > 1:
            numbers = np.searchsorted(classes, real["label"])
            nearest = numbers[cKDTree(real["x"]).query(sample["x"])[1]]
            measured["class-agreement"] = float((nearest == sample["label"]).mean())
        return measured


def _mixture(parameters: Arrays, number: int) -> Mixture:
    return Mixture(parameters["weights"][number], parameters["means"][number], parameters["covariances"][number])
