"""What an experiment can tell, from how its own runs varied: the smallest difference, and how many seeds for one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from flows.tools.profiling import read_profile
from flows.tools.result_table import print_rows
from fortifai_core.errors import ArtifactDamaged, InputError
from fortifai_core.outcomes.power import detectable, runs_for
from fortifai_core.outside import markup
from fortifai_core.wording import arm_title, number
from storage.store.experiments import list_experiments
from storage.store.store import ArtifactStore


@dataclass(frozen=True)
class Told:
    """One comparison of a finished experiment.

    Attributes:
        runs: seeds that it had.
        smallest, corrected: the smallest difference that so many seeds tell, alone and among all comparisons (at the
            level that the smallest p must pass under Holm's correction). On a logarithmic scale as a share: 0.1 is 10%.
        wanted: the difference asked for.
        seeds, seeds_corrected: how many tell it, alone and among all comparisons; None where no number does, or where
            one run says nothing of others.
    """

    arm: str
    against: str
    measure: str
    runs: int
    smallest: float
    corrected: float
    wanted: float
    seeds: int | None
    seeds_corrected: int | None


def told(profile: dict[str, Any], *, difference: float | None = None) -> list[Told]:
    """What every comparison of a profile could tell. `difference`: as `wanted`; by default each definition's margin."""
    # where arms do not differ in any run or document there is no error, which says nothing of what would be told
    known = [row for row in profile.get("profile_differences", []) if row["error"]]
    return list(_each(known, profile["level"], difference))


def _each(rows: list[dict[str, Any]], level: float, difference: float | None) -> Iterator[Told]:
    levels = level, level / len(rows) if rows else level
    for row in rows:
        runs, logarithmic, spread = row["runs"], row["logarithmic"], row["spread"] or 0.0
        of_one = {"count": row["clusters"], "shared": row["shared"]}
        documents = math.sqrt(max(0.0, row["error"] ** 2 - spread**2 / runs) * (1 if row["shared"] else runs))
        wanted = row["margin"] if difference is None else difference
        on_scale = math.log1p(wanted) if logarithmic else wanted
        at = [detectable(row["error"], row["freedom"], level=one) for one in levels]
        smallest, corrected = (math.expm1(min(700.0, value)) if logarithmic else value for value in at)
        seeds: list[int | None] = [None, None]
        if runs > 1:
            seeds = [runs_for(on_scale, spread, documents=documents, level=one, **of_one) for one in levels]
        yield Told(row["arm"], row["against"], row["measure"], runs, smallest, corrected, wanted, seeds[0], seeds[1])


def as_json(found: list[Told]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def show(label: str, found: list[Told], console: Console) -> None:
    """A row a comparison, and what the numbers are."""
    names = ("arm", "measure", "seeds", "told from", "corrected", "to tell", "takes seeds", "corrected")
    rows = []
    for one in found:
        sizes = (one.smallest, one.corrected, one.wanted)
        seeds = ("–" if n is None else str(n) for n in (one.seeds, one.seeds_corrected))
        rows.append([arm_title(one.arm), one.measure, str(one.runs), *map(number, sizes), *seeds])
    console.print(f"\n[bold]{markup(label)}: what its runs can tell[/]")
    print_rows(names, rows, console)
    console.print(
        f"[dim]80% power, two-sided 5%, paired by seed and document, against {markup(arm_title(found[0].against))}; "
        f"corrected: among all {len(found)} comparisons (Holm, at worst). Shares, and of logarithms what they come to: "
        "0.05 is 5 points, or 5%. –: no number of seeds (more documents or questions would), or one run, which says "
        "nothing of others.[/]",
        highlight=False,
    )


def seen_power(name: str, store: ArtifactStore) -> str:
    """What a plan says of the newest finished experiment of that name, if its runs varied; otherwise nothing."""
    finished = [record for record in list_experiments(store) if record.name == name and record.status == "finished"]
    try:
        found = told(read_profile(store, finished[-1])) if finished else []
    except (InputError, ArtifactDamaged):  # without a profile nothing is said; whoever asks for it is told why
        return ""
    if not found or found[0].runs < 2:
        return ""
    label, runs = finished[-1].label, found[0].runs
    parts = ", ".join(f"{one.measure} {number(one.smallest)}" for one in found[:4] if one.arm == found[0].arm)
    two = f"{arm_title(found[0].arm)} and {arm_title(found[0].against)}"
    return (
        f"From {label} in the store ({runs} seeds): {two} are told apart from {parts} on; `fortifai power` says more."
    )
