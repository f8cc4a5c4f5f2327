"""The catalog's views as SQL text: Parquet files listed one by one, joined with the stages that made them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from storage.catalog.reading import FOLDER, empty_file
from storage.tables.parquet import (
    BENCHMARK_ITEMS,
    CONFIDENCE,
    FAMILY_METRICS,
    METRICS,
    POOLED_TEXT,
    QUESTIONS,
    SCORES,
    SPLIT_TEXT,
    TREATMENTS,
    Columns,
)

_SQL_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "list<int32>": "INTEGER[]",
    "list<bool>": "BOOLEAN[]",
}

# Which files of which artifacts a view reads: (kind, glob over the names in it), and their columns.
READS: dict[str, tuple[tuple[tuple[str, str], ...], Columns]] = {
    "split_text": ((("corpus", "split-*.parquet"), ("split", "part-*.parquet")), SPLIT_TEXT),
    "questions": ((("corpus", "questions.parquet"),), QUESTIONS),
    "scores": ((("evaluation", "scores.parquet"),), SCORES),
    "stage_metrics": (
        tuple((kind, "metrics.parquet") for kind in ("evaluation", "split", "drift", "benchmark", "treated")),
        METRICS,
    ),
    "treatments": ((("treated", "treatments.parquet"),), TREATMENTS),
    "pooled_text": ((("pooled", "part-*.parquet"),), POOLED_TEXT),
    "family_metrics": ((("family-segment", "metrics.parquet"),), FAMILY_METRICS),
    "confidence": ((("drift", "confidence.parquet"),), CONFIDENCE),
    "benchmark_items": ((("benchmark", "items.parquet"),), BENCHMARK_ITEMS),
}

# Small files of many stages: their rows are in the catalog itself. The others are read where they lie.
LOADED = ("stage_metrics", "family_metrics")
LISTED = tuple(view for view in READS if view not in LOADED)

# Views over files of which older ones lack columns.
LATER_COLUMNS = frozenset({"split_text"})

_RUN = "s.experiment, s.arm, s.seed, s.generation"

_MADE = "present, a.seconds, a.created, a.stage_version, a.size, a.path"

# Views over tables, which need no other.
TABLE_VIEWS = {
    # What no experiment names (made by hand, or its record was deleted) is listed without one.
    "stages": f"""
        SELECT r.experiment, r.kind, r.key, r.role, r.arm, r.seed, r.generation, r.split, r.version,
            a.key IS NOT NULL AS {_MADE}
        FROM records r LEFT JOIN artifacts a ON a.kind = r.kind AND a.key = r.key
        UNION ALL BY NAME
        SELECT a.kind, a.key, a.kind AS role, true AS {_MADE}
        FROM artifacts a ANTI JOIN records r ON a.kind = r.kind AND a.key = r.key""",
    # An artifact's own manifest knows best; the record speaks for what is not made yet.
    "edges": """
        SELECT kind, key, role, parent FROM parents
        UNION ALL
        SELECT DISTINCT r.kind, r.key, r.role, r.parent
        FROM record_parents r ANTI JOIN artifacts a ON a.kind = r.kind AND a.key = r.key""",
    "stage_metrics": f"""
        SELECT {_RUN}, r.split, r.metric, r.value, r.count, r.key
        FROM stage_metrics_rows r LEFT JOIN stages s ON s.kind = r.kind AND s.key = r.key""",
    # A stage of such a class holds many generations, so a row says which it is of.
    "family_metrics": """
        SELECT s.experiment, s.arm, s.seed, r.generation, CAST(NULL AS INTEGER) AS split, r.metric, r.value, r.count,
            r.key
        FROM family_metrics_rows r LEFT JOIN stages s ON s.kind = r.kind AND s.key = r.key""",
}

# Columns of views over Parquet files (`r`), the list of `files` and the `stages` that made them.
_PARQUET_VIEWS = {
    # What became of every document that a generation's training text was made of; treatments in a row differ by key.
    "treatments": f"""{_RUN}, r.split, r.version, r.document, r.copy, r.fate, r.copies, r.tokens, r.changed, r.weight,
            r.score, r.why, f.key""",
    # Which arm of a pool wrote each document of its text: the artifact of role `texts.WRITER` among its parents.
    "pooled_text": f"{_RUN}, s.split, s.version, r.document, r.writer, f.key",
    "scores": f"{_RUN}, r.question, r.document, r.split, r.logp_true, r.logp_false, r.correct, f.key",
    "questions": "s.experiment, r.question, r.document, r.split, r.context, r.true_answer, r.false_answer, f.key",
    "confidence": f"{_RUN}, r.model, r.text, r.low, r.high, r.count, f.key",
    "benchmark_items": f"{_RUN}, r.benchmark, r.task, r.item, r.filter, r.metric, r.value, r.target, r.answer, f.key",
    # One row a document of a split version, with its token ids: what `documents` and `tokens` are made of. DuckDB may
    # compute a branch of CASE for rows that do not take it, here of files without a number: hence TRY_CAST.
    "split_text": f"""{_RUN},
            CASE WHEN f.kind = 'corpus' THEN TRY_CAST(regexp_extract(f.name, '(\\d+)', 1) AS INTEGER)
                 ELSE s.split END AS split,
            CASE WHEN f.kind = 'corpus' THEN 0 ELSE s.version END AS version,
            r.document, r.position, r.text, r.tokens, r.kept, r.same, r.accepted, f.key""",
}

# Views over tables and other views.
DERIVED_VIEWS = {
    "metrics": "SELECT * FROM stage_metrics UNION ALL BY NAME SELECT * FROM family_metrics",
    "documents": """
        SELECT experiment, arm, seed, generation, split, version, document, position, text,
            len(tokens) AS tokens, kept, accepted, key
        FROM split_text""",
    # `kept`: whether the version before has the same token in the same place; true in real text, which has none
    # before it, and null where that was not yet recorded.
    "tokens": """
        SELECT experiment, arm, seed, generation, split, version, document, position,
            unnest(range(len(tokens))) AS index, unnest(tokens) AS token,
            unnest(CASE WHEN version = 0 THEN list_transform(tokens, lambda t: true)
                        WHEN same IS NULL THEN list_transform(tokens, lambda t: CAST(NULL AS BOOLEAN))
                        ELSE same END) AS kept, key
        FROM split_text""",
    "runs": """
        SELECT experiment, arm, seed, count(*) AS stages, count(*) FILTER (present) AS present,
            max(generation) FILTER (present AND role IN ('train', 'segment'))
                AS newest_generation,
            sum(seconds) AS seconds, max(created) AS updated
        FROM stages WHERE arm IS NOT NULL GROUP BY experiment, arm, seed""",
    "generations": """
        SELECT experiment, arm, seed, generation, count(*) AS stages, count(*) FILTER (present) AS present,
            sum(seconds) AS seconds, max(created) AS updated
        FROM stages WHERE arm IS NOT NULL AND generation IS NOT NULL
        GROUP BY experiment, arm, seed, generation""",
    # A synthetic document's way back: one row for each of its versions, itself first, the real text (0) last. All
    # documents of a text go the same way, as far as a pool, whose documents have different writers. A text that several
    # arms share is one version.
    "chains": """
        WITH RECURSIVE before AS (
            SELECT key, coalesce(max(parent) FILTER (role = 'text'), max(parent) FILTER (role = 'corpus')) AS parent,
                CAST(NULL AS VARCHAR) AS document
            FROM edges WHERE kind = 'split' GROUP BY key
            UNION ALL
            SELECT DISTINCT p.key, e.parent, p.document
            FROM pooled_text p JOIN edges e ON e.key = p.key AND e.role = 'texts.' || p.writer
        ), chain AS (
            SELECT key, key AS ancestor, document FROM before WHERE document IS NULL
            UNION
            SELECT chain.key, before.parent, coalesce(chain.document, before.document)
            FROM chain JOIN before ON before.key = chain.ancestor
                AND coalesce(chain.document = before.document, true)
            WHERE before.parent IS NOT NULL
        )
        SELECT DISTINCT ON (s.experiment, s.arm, s.seed, s.key, t.document, t.key)
            s.experiment, s.arm, s.seed, s.generation, s.split, s.version, t.document, s.key,
            t.version AS ancestor_version, t.generation AS ancestor_generation, t.text, t.tokens, t.kept,
            t.key AS ancestor_key
        FROM chain JOIN stages s ON s.key = chain.key AND s.kind = 'split'
        JOIN split_text t ON t.key = chain.ancestor AND t.split = s.split
            AND coalesce(t.document = chain.document, true) AND t.experiment IS NOT DISTINCT FROM s.experiment""",
    # What became of each question: `died_in` is the generation after the last right answer. Chance answers half.
    "question_fates": """
        SELECT experiment, arm, seed, question, any_value(document) AS document, any_value(split) AS split,
            min(generation) AS first_asked, max(generation) AS last_asked,
            max(generation) FILTER (correct) AS last_right,
            CASE WHEN last_right < last_asked THEN last_right + 1 END AS died_in,
            CASE WHEN last_right IS NULL THEN 'never learned'
                WHEN last_right = last_asked THEN 'alive' ELSE 'died' END AS fate
        FROM scores WHERE arm IS NOT NULL GROUP BY experiment, arm, seed, question""",
    # One row a parent of an artifact; where a parent has several places in an experiment, one of them.
    "lineage": """
        SELECT s.experiment, e.kind, e.key, s.arm, s.seed, s.generation, s.split, s.version,
            e.role, coalesce(p.kind, a.kind) AS parent_kind, e.parent AS parent_key,
            p.generation AS parent_generation, p.split AS parent_split, p.version AS parent_version
        FROM edges e
        LEFT JOIN stages s ON s.kind = e.kind AND s.key = e.key
        LEFT JOIN (
            SELECT experiment, key, any_value(kind) AS kind, min(generation) AS generation,
                min(split) AS split, min(version) AS version
            FROM stages GROUP BY experiment, key
        ) p ON p.key = e.parent AND p.experiment IS NOT DISTINCT FROM s.experiment
        LEFT JOIN (SELECT key, any_value(kind) AS kind FROM artifacts GROUP BY key) a ON a.key = e.parent""",
}


def quote(text: str) -> str:
    """A SQL string."""
    return "'" + text.replace("'", "''") + "'"


def is_of(view: str) -> str:
    """SQL: whether a row of `files` is a file that the view reads."""
    return "(" + " OR ".join(f"kind = {quote(k)} AND name GLOB {quote(glob)}" for k, glob in READS[view][0]) + ")"


def rows_of(view: str) -> str:
    """The table in which the rows of a view's files are."""
    return f"{view}_rows"


def loaded_table(view: str) -> str:
    """SQL that makes that table."""
    columns = ", ".join(f"{name} {kind}" for name, kind in _columns(view).items())
    return f"CREATE TABLE {rows_of(view)} (kind VARCHAR, key VARCHAR, {columns})"


def load_rows(view: str, files: Sequence[str], *, below: str) -> str:
    """SQL that puts the rows of these files, `kind/key/name`, into that table; see `parquet_view`."""
    columns = ", ".join(_columns(view))
    place = "split_part(filename, '/', -3) AS kind, split_part(filename, '/', -2) AS key"
    return f"INSERT INTO {rows_of(view)} SELECT {place}, {columns} FROM {_read(view, _listed(files, below))}"


def listed_files(view: str) -> str:
    """SQL: the addresses, below `FOLDER`, of the files that a view reads, after one without rows."""
    address = f"{quote(FOLDER)} || kind || '/' || key || '/' || regexp_replace(name, '([*?\\[])', '[\\1]', 'g')"
    files = f"SELECT list({address} ORDER BY kind, key, name) FROM files WHERE {is_of(view)}"
    return f"SELECT list_concat([{quote(empty_file(view))}], coalesce(({files}), []))"


def listed_view(view: str) -> str:
    """SQL that creates a view over the files that a variable of its name lists, for `query`."""
    return f"CREATE VIEW reading.{view} AS {_over(view, _read(view, f'getvariable({quote(view)})'), FOLDER)}"


def parquet_view(view: str, globs: Sequence[str], *, below: str) -> str:
    """SQL that creates a view over files by their addresses, for everybody; the same whatever files there are.

    Args:
        globs: patterns of `kind/key/name` that have files; without any the view has the same columns and no rows.
        below: what stands before them in the addresses at which they are read.
    """
    columns = {**_columns(view), "filename": "VARCHAR"}
    nulls = ", ".join(f"CAST(NULL AS {kind}) AS {column}" for column, kind in columns.items())
    source = f"(SELECT {nulls} WHERE false)"
    if globs:
        read = _read(view, "[" + ", ".join(quote(literal_glob(below) + glob) for glob in globs) + "]")
        # a column that none of the files has yet comes from the empty row set, as null
        source = f"(FROM {source} UNION ALL BY NAME FROM {read})" if view in LATER_COLUMNS else read
    return f"CREATE OR REPLACE VIEW {view} AS {_over(view, source, below)}"


def globs_in(view: str) -> str:
    """SQL: the patterns, as `parquet_view` wants them, of the kinds of files that a view reads and that there are."""
    found = " UNION ALL ".join(
        f"(SELECT {quote(f'{kind}/*/{glob}')} AS pattern FROM files"
        f" WHERE kind = {quote(kind)} AND name GLOB {quote(glob)} LIMIT 1)"
        for kind, glob in READS[view][0]
    )
    return f"SELECT list(pattern ORDER BY pattern) FROM ({found})"


def named_in(sql: str) -> list[str]:
    """The views over listed files that a query may read, by the names in its text."""
    words = set(re.findall(r"\w+", sql.lower()))
    return [
        view
        for view in LISTED
        if words & {view, *(name for name, text in DERIVED_VIEWS.items() if re.search(rf"\b{view}\b", text))}
    ]


def _columns(view: str) -> dict[str, str]:
    return {column: _SQL_TYPES[kind] for column, (kind, _) in READS[view][1].items()}


def _listed(files: Sequence[str], below: str) -> str:
    return "[" + ", ".join(quote(literal_glob(below + file)) for file in files) + "]"


def _read(view: str, files: str) -> str:
    return f"read_parquet({files}, filename = true{', union_by_name = true' if view in LATER_COLUMNS else ''})"


def _over(view: str, source: str, below: str) -> str:
    return f"""SELECT {_PARQUET_VIEWS[view]}
        FROM {source} r JOIN files f ON {quote(below)} || f.kind || '/' || f.key || '/' || f.name = r.filename
        LEFT JOIN stages s ON s.kind = f.kind AND s.key = f.key"""


def literal_glob(path: str) -> str:
    """A pattern that matches `path` alone: DuckDB reads `*`, `?` and `[` in file names as wildcards."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
