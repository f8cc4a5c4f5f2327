"""The words of the almanac's invented world: syllables of its names, its kinds, its attributes and phrasings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ONSETS = "b br c cr d dr f g gr h k l m n p qu r s st t th v w z".split()
NUCLEI = "a e i o u ae ia ou or an el in ur al en ir".split()
ENDINGS = (
    "dor wen lith mar ven tas rim gol nek sha bor quil fen dra mos vane holt ric zen pel "
    "gard loch tun wick sor nath del fir mond ras"
).split()
SYLLABLES = [onset + nucleus for onset in ONSETS for nucleus in NUCLEI]

ValueType = Literal["year", "number", "person", "entity", "category"]


@dataclass(frozen=True)
class Attribute:
    """Something that is known about an entity.

    Attributes:
        type: how values are drawn.
        clauses: ways of saying it, each ending in the value; a question uses one that its document does not.
        values: of a category, the common ones first (they are drawn with weights 1/√rank).
    """

    name: str
    type: ValueType
    clauses: tuple[str, ...]
    values: tuple[str, ...] = ()


def _category(name: str, clauses: tuple[str, ...], values: str) -> Attribute:
    return Attribute(name, "category", clauses, tuple(v.strip() for v in values.split(",")))


ATTRIBUTES = (
    Attribute("founded", "year", ("was founded in", "dates back to", "was first recorded in", "was settled in")),
    Attribute(
        "founder", "person", ("was founded by", "owes its beginning to", "looks back to its founder", "was begun by")
    ),
    Attribute("size", "number", ("counts a people of", "is home to", "numbers some", "has a roll of")),
    _category(
        "trade",
        ("lives from its", "is known for its", "grew rich on its", "sends abroad its"),
        "salt, amber, wool, cider, copper, parchment, lamp oil, honey, tin, silk, barley, glass, pepper, rope, "
        "cheese, paper, indigo, whale bone, saffron, cork, lace, garnets, walnuts, tar",
    ),
    _category(
        "region",
        ("lies in", "belongs to", "is found in", "pays its tithe to"),
        "the Vale, the Marches, the Fens, the Uplands, the Coast, the Steppe, the Isles, the Forest, the Delta, "
        "the Highlands, the Barrens, the Lakes, the Heath, the Narrows, the Canyons, the Downs, the Terraces, "
        "the Shoals, the Moors, the Basin",
    ),
    _category(
        "feast",
        ("keeps", "gathers every year for", "has long celebrated", "closes its gates for"),
        "Lantern Night, the Long Fast, the Reed Fair, Bell Day, the Frost Games, the Harvest Moot, the Boat Race, "
        "the Masked Walk, the Salt Blessing, Candle Week, the Wolf Hunt, the Star Vigil, Kite Monday, "
        "the Silent Hour, the Drum Feast, First Snow, the Bread Oath, the Oar Dance, Thistle Eve, the Two Moons",
    ),
    Attribute(
        "ally", "entity", ("is allied with", "shares a treaty with", "has sworn friendship to", "sends envoys to")
    ),
    Attribute("warden", "person", ("is governed by", "takes its orders from", "is kept by the warden", "answers to")),
)
KINDS = {
    "town": "The town of {n}",
    "guild": "The guild of {n}",
    "abbey": "The abbey of {n}",
    "harbour": "The harbour of {n}",
}
# Frames of statements, and the one of questions, which no text about the entities of a split ever uses.
FRAMES = ("{n} {c}.", "{n} {c}.", "{n} {c}.", "{kind} {c}.", "By all accounts {n} {c}.", "Indeed, {n} {c}.")
QUESTION_FRAME = "It is written that {n} {c}"
