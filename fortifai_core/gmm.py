"""Gaussian mixtures under recursive training (ForTIFAI, Section 4.7, Figure 8 and Algorithm 2)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fortifai_core.config import Frozen, Inconsistent
from fortifai_core.families import FamilyConfig


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


MixtureData = Annotated[Moons | Blobs | Table, Field(discriminator="type")]


class GmmConfig(FamilyConfig):
    """A Gaussian mixture for each class, fitted by EM to the samples of the mixture before it."""

    data_fields: ClassVar[frozenset[str]] = frozenset({"data"})
    measure_fields: ClassVar[frozenset[str]] = frozenset({"projections", "survival_radius"})

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
        if isinstance(self.data, Blobs) and self.data.classes > self.data.clusters:
            remedy = f"there are only {self.data.clusters} clusters to be dealt out; lower it"
            raise Inconsistent("family.data.classes", self.data.classes, remedy)
        return self
