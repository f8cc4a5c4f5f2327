"""Documents of invented sentences: as many as are asked for, all of one kind."""

from __future__ import annotations

import random


def documents(count: int, *, seed: int, sentences: int = 6) -> list[str]:
    """Who does what, sentence after sentence; the same seed gives the same."""
    draw = random.Random(seed)
    who = [f"{a}{b}" for a in ("mar", "tol", "ser", "kin", "bel", "dro") for b in ("ina", "eth", "ovan", "us", "ila")]
    does = ["sees", "paints", "carries", "forgets", "builds", "sings of"]
    what = [
        f"{a} {b}" for a in ("a red", "an old", "some", "the last", "her") for b in ("boat", "house", "map", "song")
    ]
    return [
        " ".join(f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)}." for _ in range(sentences))
        for _ in range(count)
    ]
