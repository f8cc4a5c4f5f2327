"""How well WikiText's tokenisation is undone: `python tests/support/spelling.py` prints it for the mirror's two forms.

The mirror (FORTIFAI_DATA) holds the validation and test sets as `wikitext-2-v1`, where rare words are `<unk>`, and as
`wikitext-2-raw-v1`, where no word is missing; both are tokenised. So two things can be asked of a line: do both forms
come out equal, `<unk>` standing for any word? And does Moses' tokeniser make the line of what came out (asked where
`sacremoses` is installed)?
"""

from __future__ import annotations

import gzip
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def both_forms(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Every line of one of WikiText-2's sets that is not blank: raw, and word-level."""
    forms = [
        gzip.decompress((folder / form / f"{name}.txt.gz").read_bytes()).decode().split("\n")
        for form in ("wikitext-2-raw-v1", "wikitext-2-v1")
    ]
    return ((raw, words) for raw, words in zip(*forms, strict=True) if raw.strip())


def equal_share(pairs: list[tuple[str, str]], written: Callable[[str], str]) -> float:
    """The share of lines of which both forms come out equal, `<unk>` standing for any one word."""

    def equal(raw: str, words: str) -> bool:
        pattern = re.escape(written(words)).replace(re.escape("<unk>"), r"\S+?")
        return re.fullmatch(pattern, written(raw)) is not None

    return sum(equal(*pair) for pair in pairs) / len(pairs)


def returning_share(lines: list[str], written: Callable[[str], str], tokenised: Callable[[str], list[str]]) -> float:
    """The share of lines that a tokeniser makes anew of what came out."""
    return sum(tokenised(written(line)) == line.split() for line in lines) / len(lines)


def main() -> None:
    from fortifai_core.corpus.wikitext import ordinary_spelling, raw_text

    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        moses = None
    else:
        tokenizer = MosesTokenizer("en")

        def moses(text: str) -> list[str]:
            found = " ".join(tokenizer.tokenize(text, aggressive_dash_splits=True, escape=False))
            return re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", found).split()

    folder = Path(os.environ["FORTIFAI_DATA"])
    for name in ("validation", "test"):
        pairs = list(both_forms(folder, name))
        text = [raw for raw, _ in pairs if not raw.startswith(" =")]
        for written in (ordinary_spelling, raw_text):
            found = f"{name:<12}{written.__name__:<20}equal of both forms {equal_share(pairs, written):.2%}"
            if moses:
                found += f"   tokenised anew as it was {returning_share(text, written, moses):.1%}"
            print(f"{found}   of {len(pairs):,} lines, {len(text):,} without headings")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    main()
