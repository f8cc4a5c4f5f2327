"""`python tests/chaos [kills] [crowd] [postgres] [soak]`: the long disturbances, and a JSON file with their figures."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1] / "support"))

PARTS = ("kills", "crowd", "postgres", "soak")


def main() -> None:
    """Run what is asked for; exit code 1 where anything was lost, different or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="EXPERIMENT", help="kill these alone; by default all of them"
    )
    parser.add_argument("--generations", type=int, default=50, help="of the soak")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    parser.add_argument("--folder", type=Path, help="where stores go; by default a temporary folder")
    asked = parser.parse_args()
    parts = asked.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"{unknown[0]}: choose of {', '.join(PARTS)}")

    from arena import arena, possible

    if unknown := [name for name in asked.only if name not in possible()]:
        parser.error(f"--only {unknown[0]}: choose of {', '.join(possible())}")
    figures: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary, arena(asked.folder or Path(temporary)) as place:
        for part in parts:
            if part == "kills":
                from kills import campaign

                figures[part] = campaign(place, kills=asked.kills, seed=asked.seed, names=asked.only)
            elif part == "crowd":
                from crowd import crowd

                figures[part] = crowd(place)
            elif part == "postgres":
                from crowd import many

                if shutil.which("postgres") is None:
                    print("postgres: not tried, there is none on this machine")
                    continue
                figures[part] = many(place)
            else:
                from soak import soak

                figures[part] = soak(place, generations=asked.generations)
            asked.out.write_text(json.dumps(figures, indent=1))
            print(f"{part}: {json.dumps({k: v for k, v in figures[part].items() if k != 'outcomes'}, indent=1)}")
    sys.exit(any(figures[part]["lost or different"] for part in parts if part in figures))


if __name__ == "__main__":
    main()
