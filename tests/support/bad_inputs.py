"""Bad input as a table: how each is made, and what has to be said of it. Run as a program, it tries all and counts.

Every row has to end with exit code 2 and one line on standard error that names field or file, value and remedy;
nothing on standard output; and the folder in which it was tried is left as it was.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

STORE = "store"
MOMENT = "2026-01-01T00:00:00+00:00"
LONG = "a" * 300


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        kind: what is bad: `config`, `override`, `corpus`, `questions`, `table`, `model`, `argument`, `environment`,
            `store`, `output`.
        name: which one, unique within its kind.
        arguments: of `fortifai`, run in a folder of its own.
        said: parts of the one line.
        files: what lies in that folder, by name; None makes a folder.
        environment: variables that are set.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    said: tuple[str, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended. `changed`: what is there, gone or different in the folder since."""

    code: int
    out: str
    err: str
    changed: list[str]


def attempt(case: Case, folder: Path) -> Outcome:
    """Try a case in an empty folder, in this process."""
    from flows.cli.app import exit_code

    for name, content in case.files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            place.mkdir()
        else:
            place.write_bytes(content)
    before = _state(folder)
    out, err = io.StringIO(), io.StringIO()
    with (
        _environment({"FORTIFAI_STORE": str(folder / STORE), **case.environment}),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = exit_code(case.arguments)
    after = _state(folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Outcome(code, out.getvalue(), err.getvalue(), changed)


def _state(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.pop("FORTIFAI_DATA", None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# ------------------------------------------------------------------------------------------------ configurations


def configs() -> Iterator[Case]:
    """YAML files that cannot be read, or hold what no experiment is."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
        "empty": ("", ("holds no mapping",)),
        "only a comment": ("# nothing\n", ("holds no mapping",)),
        "a list": ("- just\n- a list\n", ("holds no mapping",)),
        "a number": ("5", ("holds no mapping",)),
        "broken flow": ("losses: [", ("not valid YAML", "line 1")),
        "a tab": ("a:\n\t- b", ("not valid YAML", "line 2")),
        "two documents": ("name: a\n---\nname: b\n", ("not valid YAML", "line 2")),
        "not UTF-8": (b"\xff\xfe\x00name", ("cannot be read as text", "UTF-8")),
        "latin-1": ("name: für\n".encode("latin-1"), ("cannot be read as text", "UTF-8")),
        "UTF-16": ("name: a\n".encode("utf-16"), ("cannot be read as text", "UTF-8")),
        "a NUL": ("name: \0", ("not valid YAML", "special characters")),
        "an escape sequence": ("name: \x1b[31m", ("not valid YAML", "special characters")),
        "half a surrogate pair": ('name: "\\ud800"', ("line 1", "surrogate", "write the whole character")),
        "half a surrogate pair as a name": ('"\\udfff": 1', ("line 1", "surrogate")),
        "too large": ("# " + "x" * 300_000, ("larger", "KiB")),
        "too many values": ("seeds: [" + "1," * 60_000 + "]", ("values", "write less")),
        "alias bomb": (bomb, ("values", "aliases")),
        "alias of itself": ("corpus: &c {parts: [*c]}", ("nested more than 64 deep",)),
        "list of itself": ("seeds: &s [*s]", ("nested more than 64 deep",)),
        "unknown alias": ("name: *nobody", ("not valid YAML", "undefined alias")),
        "nested lists": ("seeds: " + "[" * 10_000, ("nested more than 64 deep", "write it flatter")),
        "nested mappings": ("corpus: " + "{a: " * 10_000, ("nested more than 64 deep",)),
        "nested sequences": ("- " * 10_000, ("nested more than 64 deep",)),
        "nested keys": ("? " * 10_000, ("nested more than 64 deep",)),
        "Python's tag": ("name: !!python/object/apply:os.system ['true']", ("tag", "not read", "plainly")),
        "Python's name": ("name: !!python/name:os.system", ("tag", "not read")),
        "a tag of one's own": ("name: !mine tiny", ("tag !mine", "not read")),
        "YAML's own tag": ("splits: !!int '6'", ("tag", "not read")),
        "a set": ("seeds: !!set {1, 2}", ("tag", "not read")),
        "bytes": ("name: !!binary aGVsbG8=", ("tag", "not read")),
        "a field twice": ("name: a\nsplits: 3\nname: b\n", ("line 3", "'name' stands twice", "remove one")),
        "an inner field twice": ("model: {heads: 4, heads: 2}", ("'heads' stands twice",)),
        "a list as a name": ("[1, 2]: 3", ("line 1", "must be text")),
        "a mapping as a name": ("{a: 1}: 3", ("line 1", "must be text")),
        "a merge": ("<<: {name: a}", ("<<", "no such field")),
        "an integer of 5,000 digits": ("splits: " + "9" * 5000, ("line 1", "beyond 64 bits")),
        "a hexadecimal of 5,000 digits": ("splits: 0x" + "f" * 5000, ("line 1", "beyond 64 bits")),
        "an octal of 5,000 digits": ("splits: 0o" + "7" * 5000, ("line 1", "beyond 64 bits")),
        "a number of 70 bits": ("training: {batch_size: 1180591620717411303424}", ("beyond 64 bits", "-2^63")),
        "an unknown field": ("nmae: a", ("nmae", "did you mean `name`")),
        "a name of 300 characters": (f"name: {LONG}", ("name", "pattern")),
        "a name with a slash": ("name: ../../etc", ("name", "'../../etc'", "pattern")),
        "a name with a line's end": ('name: "a\\nb"', ("name", "pattern")),
        "null for a part": ("corpus: null", ("corpus", "None")),
        "a list for a part": ("training: []", ("training", "[]")),
        "a text for a part": ("model: small", ("model", "'small'")),
        "an unknown type": ("corpus: {type: web}", ("corpus", "'web'", "'almanac'")),
        "a type that is a list": ("corpus: {type: [text]}", ("corpus", "text")),
        "an unknown family": ("family: {type: gan}", ("family", "'gan'")),
        "a family that is a number": ("family: 1", ("family = 1",)),
        "a family without a type": ("family: {}", ("family", "type")),
        "a seed of 2^63": ("seeds: [9223372036854775808]", ("9223372036854775808", "2^63-1")),
        "a negative seed": ("seeds: [-1]", ("seeds.0 = -1", "greater than or equal to 0")),
        "seeds that are no list": ("seeds: 1,2", ("seeds = '1,2'", "give a list: [1,2]")),
        "seeds without any": ("seeds:", ("seeds = None", "give a list: […]")),
        "a long text for a list": (f"seeds: {'x' * 10_000}", ("seeds = 'xxx", "give a list: [xxx")),
        "one loss, not a list": ("losses: ce", ("losses = 'ce'", "give a list: [ce]")),
        "no seeds": ("seeds: []", ("seeds", "at least 1 item")),
        "an arm's name of 300 characters": (
            f"losses: [{{type: custom, function: 'a:b', name: {LONG}}}]",
            ("losses.0.name", "pattern"),
        ),
        "a loss that is no function's name": (
            "losses: [{type: custom, function: os.system, name: x}]",
            ("losses.0.function", "'os.system'", "pattern"),
        ),
        **{
            f"a loss whose {field} is {value}": (
                f"losses: [{{type: {kind}, {field}: {value}}}]",
                (f"losses.0.{field} = {value}", said),
            )
            for kind, field, value, said in (
                ("label-smoothing", "epsilon", 1.0, "less than 1"),
                ("z-loss", "weight", 0.0, "greater than 0"),
                ("tce-entropy", "factor", 0.0, "greater than 0"),
                ("eaft", "alpha", -1.0, "greater than 0"),
                ("undo-temperature", "temperature", 0.0, "greater than 0"),
                ("tail", "drop", 1.0, "less than 1"),
            )
        },
        "a temperature to undo that is not said": (
            "losses: [{type: undo-temperature}]",
            ("losses.0.temperature", "required"),
        ),
        "a mask of another family": (
            "family: {type: zipf}\narms: [{type: adaptive}]",
            ("arms.0.type", "'adaptive'", "has the arms"),
        ),
        "an arm's field that there is not": (
            "arms: [{name: a}, {name: b, training: {epochz: 2}}]",
            ("arms.1.training.epochz = 2", "did you mean `epochs`"),
        ),
        "an arm's own seeds": ("arms: [{name: a, seeds: [1]}]", ("arms.0.seeds", "the same in all arms")),
        "two arms of a name": (
            "arms: [{name: a}, {name: a, regime: replace}]",
            ("arms.1.name", "that of arms.0"),
        ),
        "two arms that are one": (
            "arms: [{name: a}, {name: b, regeneration: {beams: 3}}]",
            ("arms.1 = 'b'", "comes to the same as a"),
        ),
        "a share without the rest": (
            "arms: [{name: a, mixture: {synthetic: 0.5}}]",
            ("arms.0.mixture.synthetic = 0.5", "set it to 1"),
        ),
        "a share that the regime sets": (
            "regime: accumulate\nmixture: {synthetic: 1}",
            ("mixture.synthetic = 1.0", "accumulate sets a share of its own"),
        ),
        "a share of too much text": (
            "mixture: {synthetic: 0.9, real: fresh, splits: 2}",
            ("mixture.splits = 2", "one of each"),
        ),
        "smoothing of another loss": (
            "losses: [{type: tce}]\ntraining: {label_smoothing: 0.1}",
            ("training.label_smoothing = 0.1", "cross entropy"),
        ),
        "an unknown treatment": ("treatments: [{type: pray}]", ("treatments.0", "'pray'", "'verifier'")),
        "a treatment of a share above 1": (
            "treatments: [{type: surprise-filter, keep: 1.5}]",
            ("treatments.0.keep = 1.5", "less than or equal to 1"),
        ),
        "a treatment with nothing to treat": (
            "generations: 1\ntreatments: [{type: deduplicate}]",
            ("treatments.0 = 'deduplicate'", "raise generations"),
        ),
        "weights without real text": (
            "regime: replace\ntreatments: [{type: weights}]",
            ("treatments.0 = 'weights-golden'", "fresh-mix"),
        ),
        "a treatment that is not installed": (
            "arms: [{name: a}, {name: b, treatments: [{type: custom, function: nowhere, name: n}]}]",
            ("arms.1.treatments.0.function = 'nowhere'", "no installed package offers a treatment"),
        ),
        "a treatment that nobody allowed": (
            "treatments: [{type: custom, function: 'mine:f', name: n}]",
            ("treatments.0.function = 'mine:f'", "--allow-code mine"),
        ),
        "a verifier that is not installed": (
            "treatments: [{type: verifier, checker: nowhere}]",
            ("treatments.0.checker = 'nowhere'", "no installed package offers a verifier"),
        ),
        "a detector that is not there": (
            "treatments: [{type: detector, classifier: ./nowhere}]",
            ("treatments.0.classifier = './nowhere'", "cannot be read"),
        ),
        "arms that are a number": ("arms: 3", ("arms = 3", "list")),
        "an arm that is a number": ("arms: [3]", ("arms.0 = 3",)),
        "an arm without a name": ("arms: [{regime: replace}]", ("arms.0.name", "required")),
        "an arm of losses and arms": (
            "losses: [{type: cross-entropy}, {type: tce}]\narms: [{name: a}]",
            ("losses", "leave one loss"),
        ),
        "a named mask of another family": (
            "family: {type: zipf}\narms: [{name: a, mask: {type: adaptive}}]",
            ("arms.0.mask.type", "'adaptive'", "has the arms"),
        ),
        "two named arms that are one": (
            "family: {type: zipf}\narms: [{name: a}, {name: b}]",
            ("arms.1 = 'b'", "comes to the same as a"),
        ),
        "a regime that a class has not": (
            "family: {type: gaussian}\narms: [{name: a, regime: accumulate}]",
            ("arms.0.regime = 'accumulate'", "set replace"),
        ),
        "an unknown measure": (
            "family: {type: zipf}\nfailure: {metric: luck, threshold: 1}",
            ("failure.metric", "'luck'", "choose one of"),
        ),
    }
    for name, (text, said) in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        yield Case("config", name, ("plan", "mine.yaml"), said, {"mine.yaml": content})
    one_class = json.dumps({"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 1})
    detector = b"treatments: [{type: detector, classifier: ./one}]"
    files = {"mine.yaml": detector, "one/config.json": one_class.encode()}
    said = ("treatments.0.classifier = './one'", "has one label", "both classes")
    yield Case("config", "a detector of one class", ("plan", "mine.yaml"), said, files)
    for name, source, said in (
        ("a file that is not there", "no/mine.yaml", ("file = 'no/mine.yaml'", "no such file")),
        ("a folder", "folder.yaml", ("folder.yaml", "no such file")),
        ("nobody's home", "~nosuchuser/mine.yaml", ("~nosuchuser", "no such user")),
        ("a name of 300 bytes", f"{LONG}.yaml", ("longer than a path can be", "shorten")),
        ("a path of 3,000 parts", "x/" * 3000 + "mine.yaml", ("longer than a path can be", "shorten")),
        ("a path of 5,000 bytes", "x" * 200 + ("/" + "x" * 200) * 24 + ".yaml", ("longer than a path can be",)),
        ("a file as a folder", "file.yaml/mine.yaml", ("file.yaml/mine.yaml", "no such file")),
        ("a device", "/dev/zero", ("/dev/zero", "no such file")),
        ("nothing", "", ("preset = ''", "choose one of")),
        ("an unknown preset", "tinny", ("preset = 'tinny'", "did you mean `tiny`")),
        ("a preset of 5,000 characters", "t" * 5000, ("preset", "choose one of")),
    ):
        yield Case("config", name, ("plan", source), said, {"folder.yaml": None, "file.yaml": b"name: a"})


def overrides() -> Iterator[Case]:
    """`--set` on a preset."""
    of_tiny: dict[str, tuple[str, ...]] = {
        "nonsense": ("--set = 'nonsense'", "path=value"),
        "=": ("--set = '='", "path=value"),
        "=5": ("--set", "path=value"),
        "name=[": ("--set", "not valid YAML"),
        "name=!!python/name:os.system": ("--set", "tag", "not read"),
        "seeds=&a [*a]": ("--set", "nested more than 64 deep"),
        "corpus={type: almanac, type: text}": ("--set", "'type' stands twice"),
        "seeds=" + "[" * 5000: ("--set", "nested more than 64 deep"),
        "splits=" + "9" * 5000: ("--set", "beyond 64 bits"),
        "seeds=[9223372036854775808]": ("beyond 64 bits", "2^63-1"),
        "seeds=[-1]": ("seeds.0 = -1", "greater than or equal to 0"),
        "seeds=[1, 1]": ("seeds = [1, 1]", "different"),
        "seeds=[true]": ("seeds.0 = True", "give a number"),
        "seeds=['1']": ("seeds.0 = '1'", "give a number"),
        "seeds=1": ("seeds = 1", "list"),
        "seeds={a: 1}": ("seeds", "list"),
        "losses.1.gamma=true": ("losses.1.gamma = True", "give a number"),
        "losses.1.gamma=0": ("losses.1.gamma = 0", "greater than 0"),
        "losses.1.gamma='0.5'": ("losses.1.gamma = '0.5'", "give a number"),
        "losses.1.gamma=0,5": ("losses.1.gamma = '0,5'", "give a number"),
        "losses.1.gamma=.nan": ("losses.1.gamma = nan", "finite"),
        "losses.1.gamma=.inf": ("losses.1.gamma = inf",),
        "losses.1.gamma=1e999": ("losses.1.gamma = inf",),
        "losses.1.gamma=null": ("losses.1.gamma = None", "number"),
        "losses.1.gama=0.9": ("losses.1.gama", "did you mean `gamma`"),
        "losses.7.gamma=1": ("--set", "entries 0 to"),
        "losses.²=1": ("--set", "entries 0 to"),
        "losses.-1.gamma=1": ("--set", "entries 0 to"),
        "losses." + "9" * 5000 + "=1": ("--set", "entries 0 to"),
        "name.x=1": ("--set", "`name` has no fields"),
        ".".join(["a"] * 3000) + "=1": ("--set", "names more than 64 fields"),
        "a.b.c=1": ("a = {'b': {'c': 1}}", "no such field"),
        ".=1": ("no such field",),
        f"{LONG}=1": ("no such field",),
        "corpus.entities=1:30": ("corpus.entities = '1:30'", "give a number"),
        "corpus.entities=1_000": ("corpus.entities = '1_000'", "give a number"),
        "corpus.entities=007x": ("corpus.entities = '007x'", "give a number"),
        "corpus.entities=1e400": ("corpus.entities = inf",),
        "corpus.entities=1000000": ("corpus.entities = 1000000", "names for", "lower it"),
        "corpus.pretraining_entities=9000000000": ("corpus.pretraining_entities", "names for", "lower it"),
        "corpus.validation_entities=9000000000": ("corpus.validation_entities", "names for", "lower it"),
        "evaluation.drift=yes": ("evaluation.drift = 'yes'", "true or false"),
        "evaluation.drift=on": ("evaluation.drift = 'on'", "true or false"),
        "evaluation.drift=1": ("evaluation.drift = 1", "true or false"),
        "evaluation.drift=null": ("evaluation.drift = None",),
        "evaluation.benchmarks=blimp": ("evaluation.benchmarks = 'blimp'", "list"),
        "evaluation.benchmarks=['../x']": ("evaluation.benchmarks = '../x'", "no name"),
        "evaluation.benchmark_fewshot={gsm8k: true}": ("evaluation.benchmark_fewshot.gsm8k = True", "give a number"),
        "evaluation.benchmark_fewshot={gsm8k: -1}": ("evaluation.benchmark_fewshot.gsm8k = -1", "0 or more"),
        "splits=true": ("splits = True", "give a number"),
        "splits=6.5": ("splits = 6.5", "integer"),
        "splits=1": ("splits = 1", "greater than or equal to 2"),
        "generations=99": ("generations = 99", "above splits"),
        "regime=papier": ("regime = 'papier'", "'paper'"),
        "regime=[paper]": ("regime",),
        "model.heads=3": ("model.heads = 3", "divide hidden_size"),
        "model.max_positions=40": ("model.max_positions = 40", "raise it"),
        "failure.metric=luck": ("failure.metric = 'luck'", "choose"),
        "failure.threshold=7": ("failure.threshold = 7", "share"),
        "runtime.workers=-1": ("runtime.workers = -1", "greater than or equal to 0"),
        "runtime.device=tpu": ("runtime.device = 'tpu'", "'cpu'"),
        "runtime.launcher=mpirun": ("runtime.launcher = 'mpirun'", "'torchrun'"),
        "runtime.processes=2": ("runtime.processes = 2", "only with runtime.launcher=torchrun"),
        "runtime.sharding=fsdp2": ("runtime.sharding = 'fsdp2'", "only with runtime.launcher=torchrun"),
    }
    for override, said in of_tiny.items():
        yield Case("override", override[:60], ("plan", "tiny", "--set", override), said)
    of_gmm = {
        "arms=[{type: threshold, gamma: true}]": ("arms.0.gamma = True", "give a number"),
        "family.components=500": ("family.components = 500", "less than or equal to 200"),
        "family.data.samples=20": ("family.components", "only", "points"),
        "seeds=[9223372036854775808]": ("beyond 64 bits",),
        "family.data={type: table}": ("family.data.file", "required"),
        "runtime.launcher=torchrun": ("runtime.launcher = 'torchrun'", "no such field"),
    }
    for override, said in of_gmm.items():
        yield Case("override", f"gmm, {override}", ("plan", "gmm", "--set", override), said)
    launched = {
        "runtime.processes=3": ("runtime.processes = 3", "must divide training.batch_size"),
        "runtime.engine=ray": ("runtime.launcher = 'torchrun'", "only with runtime.engine=processes"),
        "training.dropout=0.1": ("training.dropout = 0.1", "drawn otherwise"),
        "losses.1={type: tail}": ("runtime.processes = 2", "tail-0.2"),
        "runtime.workers=256": ("runtime.workers = 256", "512 processes", "this machine has"),
    }
    for override, said in launched.items():
        two = ("--set", "runtime.launcher=torchrun", "--set", "runtime.processes=2", "--set", override)
        yield Case("override", f"torchrun, {override}", ("plan", "tiny", *two), said)


# ------------------------------------------------------------------------------------------------ texts and tables

TEXTS = b"\n\n".join(b"the text of document %d" % number for number in range(12))


def _parquet(columns: Mapping[str, list[object]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()


def _parquet_of_bytes(name: str, values: list[bytes]) -> bytes:
    """A column that says it is text, and is not UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_bytes = pa.array(values, pa.binary())
    column = pa.StringArray.from_buffers(len(values), *of_bytes.buffers()[1:])
    sink = io.BytesIO()
    pq.write_table(pa.table({name: column}), sink)
    return sink.getvalue()


def _jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _corpus(file: str, **more: object) -> bytes:
    corpus = {"type": "text", "files": [file], **more}
    return json.dumps({"corpus": corpus, "splits": 2, "generations": 2}).encode()


def corpora() -> Iterator[Case]:
    """A user's own files, read by `plan` before any server is started."""
    good = [{"text": f"the text of document {number}"} for number in range(12)]
    files: dict[str, tuple[str, bytes | None, tuple[str, ...]]] = {
        "a folder": ("a.txt", None, ("is not a file",)),
        "an empty file": ("a.txt", b"", ("is empty", "put text into it")),
        "only blank lines": ("a.txt", b"\n \n\t\n", ("holds no document",)),
        "one document": ("a.txt", b"only one", ("documents", "splits")),
        "fewer documents than splits": ("a.txt", b"a\n\nb\n\nc", ("are left for 2 splits", "add documents")),
        "the same document everywhere": ("a.txt", b"\n\n".join([b"the same"] * 20), ("no text is left", "add")),
        "another encoding": ("a.txt", "für".encode("latin-1"), ("a.txt:1", "not UTF-8", "convert")),
        "another encoding further down": ("a.txt", TEXTS + b"\n\n\xff\xfe", ("a.txt:25", "not UTF-8")),
        "UTF-16": ("a.txt", "text".encode("utf-16"), ("a.txt:1", "not UTF-8")),
        "an unknown format": ("a.docx", b"text", ("a.docx", "must end in")),
        "no format": ("text", b"text", ("the name must end in",)),
        "gzip that is none": ("a.txt.gz", b"text", ("gzip", "get it again")),
        "gzip cut off": ("a.txt.gz", gzip.compress(TEXTS)[:-12], ("gzip", "get it again")),
        "gzip with a flipped bit": (
            "a.jsonl.gz",
            (packed := gzip.compress(_jsonl(*good)))[:30] + bytes([packed[30] ^ 255]) + packed[31:],
            ("a.jsonl.gz",),
        ),
        "a line that is no JSON": ("a.jsonl", _jsonl(*good) + b"{text: x}\n", ("a.jsonl:13", "not JSON", "correct")),
        "a line that is a list": ("a.jsonl", _jsonl(*good, [1]), ("a.jsonl:13", "not a JSON object")),
        "a line without text": ("a.jsonl", _jsonl(*good, {"body": "x"}), ("a.jsonl:13", "'text'", "set text_field")),
        "a blank text": ("a.jsonl", _jsonl(*good, {"text": " "}), ("a.jsonl:13", "not blank")),
        "a text that is a number": ("a.jsonl", _jsonl(*good, {"text": 5}), ("a.jsonl:13", "must be a text")),
        "half a surrogate pair": ("a.jsonl", _jsonl(*good, {"text": "\ud800"}), ("a.jsonl:13", "surrogate")),
        "half a pair in an id": ("a.jsonl", _jsonl(*good, {"id": "\ud800", "text": "x"}), ("a.jsonl:13", "surrogate")),
        "an id that is a list": ("a.jsonl", _jsonl(*good, {"id": [1], "text": "x"}), ("a.jsonl:13", "'id'")),
        "an id twice": ("a.jsonl", _jsonl(*good, *[{"id": "i", "text": "x"}] * 2), ("two documents have the id 'i'",)),
        "deep JSON": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", ("a.jsonl:1", "nested too deeply")),
        "an integer of 5,000 digits": ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", ("a.jsonl:1", "64 bits")),
        "a name twice": ("a.jsonl", b'{"text": "a", "text": "b"}', ("a.jsonl:1", "'text' stands twice")),
        "no Parquet": ("a.parquet", b"not parquet at all", ("a.parquet", "not a readable Parquet")),
        "Parquet cut off": ("a.parquet", _parquet({"text": ["a"] * 12})[:-20], ("a.parquet", "not a readable Parquet")),
        "Parquet without the column": ("a.parquet", _parquet({"body": ["a"] * 12}), ("'text'", "set text_field")),
        "Parquet of numbers": ("a.parquet", _parquet({"text": [1] * 12}), ("a.parquet[0]", "must be a text")),
        "Parquet with a null": ("a.parquet", _parquet({"text": ["a", None]}), ("a.parquet[1]", "must be a text")),
        "Parquet without rows": ("a.parquet", _parquet({"text": []}), ("holds no document",)),
        "Parquet that is not UTF-8": ("a.parquet", _parquet_of_bytes("text", [b"\xff\xfe"] * 12), ("not UTF-8",)),
        "Parquet whose magic is right alone": ("a.parquet", b"PAR1" + b"\0" * 64 + b"PAR1", ("not a readable",)),
    }
    for name, (file, content, said) in files.items():
        contents = {"mine.yaml": _corpus(file), file: content}
        yield Case("corpus", name, ("plan", "mine.yaml"), ("corpus.files", *said), contents)
    for name, path, said in (
        ("a file that is not there", "no.txt", ("no such file", "correct the path")),
        ("nobody's home", "~nosuchuser/a.txt", ("no such user",)),
        ("a name of 300 bytes", f"{LONG}.txt", ("longer than a path can be",)),
        ("a path of 3,000 parts", "x/" * 3000 + "a.txt", ("longer than a path can be",)),
        ("a path with a NUL", "a\0.txt", ("is no path",)),
        ("no path", "", ("must end in",)),
    ):
        yield Case("corpus", name, ("plan", "mine.yaml"), ("corpus.files.0", *said), {"mine.yaml": _corpus(path)})


def questions() -> Iterator[Case]:
    """Files of questions about a text."""
    good = {"context": "Who?", "sentence_true": "He.", "sentence_false": "She.", "location": 0}
    files: dict[str, tuple[str, bytes | None, tuple[str, ...]]] = {
        "a folder": ("q.json", None, ("is not a file",)),
        "an empty file": ("q.json", b"", ("is empty",)),
        "an empty list": ("q.json", b"[]", ("holds no question", "add some")),
        "blank lines": ("q.jsonl", b"\n\n", ("holds no question",)),
        "no list": ("q.json", b'{"a": 1}', ("q.json:1", "one JSON list")),
        "a list cut off": ("q.json", b'[{"context": "a"', ("q.json:1", "not JSON", "correct it")),
        "no comma": ("q.json", json.dumps([good]).encode()[:-1] + b" 5]", ("where a comma or ] belongs",)),
        "a number": ("q.json", b"[5]", ("q.json[0]", "must be an object")),
        "without an answer": ("q.json", _list({**good, "sentence_true": None}), ("sentence_true is None",)),
        "without a location": ("q.jsonl", _jsonl({k: good[k] for k in list(good)[:3]}), ("no location", "it needs")),
        "the same answers": ("q.json", _list({**good, "sentence_false": "He."}), ("are the same", "change or remove")),
        "a location that is true": ("q.json", _list({**good, "location": True}), ("location is True",)),
        "a location beyond the corpus": ("q.json", _list({**good, "location": 999}), ("999", "nowhere in the corpus")),
        "a location that is no id": ("q.json", _list({**good, "location": "x"}), ("'x'", "nowhere in the corpus")),
        "a location that is negative": ("q.json", _list({**good, "location": -1}), ("-1", "nowhere in the corpus")),
        "not UTF-8": ("q.jsonl", b'{"context": "\xff"}', ("q.jsonl:1", "not UTF-8", "convert")),
        "half a surrogate pair": ("q.json", _list({**good, "context": "\ud800"}), ("surrogate", "whole character")),
        "deep JSON": ("q.json", b"[" * 100_000, ("nested too deeply",)),
        "deep JSON in a line": ("q.jsonl", b"[" * 100_000, ("q.jsonl:1", "nested too deeply")),
        "an integer of 5,000 digits": ("q.json", b"[" + b"9" * 5000 + b"]", ("64 bits",)),
        "a name twice": ("q.jsonl", b'{"context": "a", "context": "b"}', ("'context' stands twice",)),
        "gzip cut off": ("q.json.gz", gzip.compress(_list(good))[:-12], ("gzip", "get it again")),
    }
    for name, (file, content, said) in files.items():
        contents = {"mine.yaml": _corpus("a.txt", questions=file), "a.txt": TEXTS, file: content}
        yield Case("questions", name, ("plan", "mine.yaml"), ("corpus.questions", *said), contents)
    for name, path, said in (
        ("a file that is not there", "no.json", ("no such file",)),
        ("nobody's home", "~nosuchuser/q.json", ("no such user",)),
        ("a name of 300 bytes", f"{LONG}.json", ("longer than a path can be",)),
    ):
        contents = {"mine.yaml": _corpus("a.txt", questions=path), "a.txt": TEXTS}
        yield Case("questions", name, ("plan", "mine.yaml"), ("corpus.questions", *said), contents)
        yield Case("questions", f"checked: {name}", ("kr", "check", path), ("FILE", *said))
    yield Case(
        "questions", "checked: an empty list", ("kr", "check", "q.json"), ("holds no question",), {"q.json": b"[]"}
    )


def _list(*rows: object) -> bytes:
    return json.dumps(rows).encode()


def tables() -> Iterator[Case]:
    """Tables for a mixture of Gaussians."""
    rows = b"x,y,c\n" + b"".join(b"%d,%d,%d\n" % (i, i * i % 7, i % 2) for i in range(40))
    files: dict[str, tuple[str, bytes | None, dict[str, object], tuple[str, ...]]] = {
        "not there": ("no.csv", None, {}, ("no.csv", "is not a file")),
        "empty": ("t.csv", b"", {}, ("is empty",)),
        "another format": ("t.xlsx", b"x", {}, ("t.xlsx", "convert it")),
        "only a header": ("t.csv", b"x,y\n", {}, ("t.csv",)),
        "ragged": ("t.csv", b"x,y\n1,2\n3\n", {}, ("t.csv", "not a readable CSV")),
        "only text": ("t.csv", b"x\n" + b"a\n" * 40, {}, ("no column holds numbers",)),
        "not UTF-8": ("t.csv", b"x,c\n" + b"1,\xff\xfe\n" * 40, {"label": "c"}, ("family.data",)),
        "Parquet cut off": ("t.parquet", _parquet({"x": [1.0] * 40})[:-20], {}, ("not a readable Parquet",)),
        "an unknown column": ("t.csv", rows, {"columns": ["z"]}, ("family.data.columns = 'z'", "there are x, y, c")),
        "an unknown label": ("t.csv", rows, {"label": "z"}, ("family.data.label = 'z'", "there are x, y, c")),
        "a hole": ("t.csv", b"x\n" + b"1\n2\n" * 20 + b"NaN\n", {}, ("no finite number", "fill or remove")),
        "the same everywhere": ("t.csv", b"x\n" + b"1\n" * 40, {}, ("same in every row", "leave it out")),
        "too few rows": ("t.csv", b"x\n1\n2\n3\n", {}, ("3 rows", "lower family.components")),
        "lists as classes": (
            "t.parquet",
            _parquet({"x": [float(i) for i in range(40)], "c": [[i % 2] for i in range(40)]}),
            {"label": "c"},
            ("family.data.file",),
        ),
    }
    for name, (file, content, more, said) in files.items():
        family = {"type": "gmm", "components": 2, "data": {"type": "table", "file": file, **more}}
        contents = {"mine.yaml": json.dumps({"family": family}).encode(), file: content}
        yield Case("table", name, ("plan", "mine.yaml"), ("family.data", *said), contents)


def models() -> Iterator[Case]:
    """Folders that are no models."""
    for name, path, files, said in (
        ("not there", "./no", {}, ("is no folder",)),
        ("empty", "./m", {"m": None}, ("is no folder with a config.json",)),
        ("a file", "./m", {"m": b"x"}, ("is no folder",)),
        (
            "pickled weights",
            "./m",
            {"m/pytorch_model.bin": b"x", "m/config.json": b'{"model_type": "llama"}'},
            ("safetensors",),
        ),
        ("nobody's home", "~nosuchuser/m", {}, ("no such user",)),
        ("a name of 300 bytes", f"./{LONG}", {}, ("longer than a path can be",)),
        ("a hub id of 300 characters", LONG, {}, ("longer than a path can be",)),
        ("no path", "", {}, ("is no path",)),
        ("an absolute path that is nowhere", "/nowhere/at/all", {}, ("is no folder",)),
    ):
        config = json.dumps({"model": {"type": "pretrained", "path": path}}).encode()
        yield Case("model", name, ("plan", "mine.yaml"), ("model.path", *said), {"mine.yaml": config, **files})


# ------------------------------------------------------------------------------------------------ command line


def arguments() -> Iterator[Case]:
    """Wrong use of the command line."""
    rows: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "no source": (("plan",), ("source", "--help")),
        "an unknown command": (("plna", "tiny"), ("'plna'", "--help")),
        "an unknown option": (("plan", "tiny", "--stor", "x"), ("--stor", "--help")),
        "an option without a value": (("plan", "tiny", "--set"), ("--set", "--help")),
        "a source too many": (("plan", "tiny", "smoke"), ("smoke", "--help")),
        "a group alone": (("bench", "nothing"), ("'nothing'", "--help")),
        "a number that is none": (("trace", "x", "--seed", "one"), ("--seed", "integer")),
        "a number out of bounds": (("kr", "check", "q", "--show", "0"), ("--show", "greater than or equal to 1")),
        "not UTF-8": (("plan", os.fsdecode(b"\xff\xfe.yaml")), ("argument 2", "not UTF-8")),
        "an override not UTF-8": (("plan", "tiny", "--set", os.fsdecode(b"name=\xff")), ("argument 4", "not UTF-8")),
        "a query not UTF-8": (("sql", os.fsdecode(b"select '\xff'")), ("argument 2", "not UTF-8")),
        "a store not UTF-8": (("ls", "--store", os.fsdecode(b"\xff")), ("argument 3", "not UTF-8")),
        "an unknown stage": (("run", "tiny", "--refresh", "everything"), ("--refresh = 'everything'", "choose one of")),
        "few-shot without a number": (("run", "tiny", "--fewshot", "gsm8k"), ("--fewshot", "benchmark=number")),
        "few-shot with a power": (("run", "tiny", "--fewshot", "gsm8k=²"), ("--fewshot", "benchmark=number")),
        "few-shot of 5,000 digits": (
            ("run", "tiny", "--fewshot", "g=" + "9" * 5000),
            ("--fewshot", "benchmark=number"),
        ),
        "a benchmark that is YAML": (("run", "tiny", "--benchmarks", "a]: [b"), ("evaluation.benchmarks", "no name")),
        "a limit of none": (("run", "tiny", "--limit", "0"), ("evaluation.benchmark_limit = 0", "greater than")),
        "an unknown experiment": (("report", "nobody"), ("experiment = 'nobody'", "not found")),
        "the latest of none": (("resume",), ("experiment = 'latest'", "run one first")),
        "an unknown key": (("show", "abcdef"), ("key = 'abcdef'", "fortifai ls")),
        "a key that is a path": (("show", "../../etc/passwd"), ("key = '../../etc/passwd'", "fortifai ls")),
        "an unknown place": (("path", "nowhere"), ("key = 'nowhere'", "fortifai ls")),
        "an unknown export": (("export", "weights", "there"), ("what = 'weights'", "model or dataset")),
        "an unknown kind of question": (("kr", "build", "tiny", "--out", "q.json", "--kinds", "x"), ("--kinds = 'x'",)),
        "a text that is not there": (("kr", "build", "no.txt", "--out", "q.json"), ("no.txt", "no such file")),
        "an unknown preset": (("init", "tinny"), ("preset = 'tinny'", "did you mean")),
        "an unknown device": (("bench", "regeneration", "--device", "tpu"), ("--device = 'tpu'", "cpu or cuda")),
        "threads below one": (("bench", "kernels", "--threads", "0"), ("--threads", "greater than or equal to 1")),
        "three sets of questions": (
            ("kr", "compare", "x", *["--questions", "q"] * 3),
            ("--questions = 3", "give two files"),
        ),
    }
    for name, (given, said) in rows.items():
        yield Case("argument", name, given, said)


def outputs() -> Iterator[Case]:
    """Places that cannot be written, told before anything is computed."""
    build = ("kr", "build", "tiny", "--out")
    plot = ("bench", "kernels", "--quick", "--plot")
    rows: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "questions in another format": ((*build, "q.txt"), ("--out = 'q.txt'", ".json or .jsonl")),
        "questions onto a folder": ((*build, "folder.json"), ("--out", "is a folder")),
        "questions below a file": ((*build, "file/q.json"), ("--out", "cannot be written")),
        "questions in /proc": ((*build, "/proc/q.json"), ("--out", "cannot be written", "another place")),
        "questions of a long name": ((*build, f"{LONG}.json"), ("--out", "longer than a path can be")),
        "questions at nobody's": ((*build, "~nosuchuser/q.json"), ("--out", "no such user")),
        "a plot in another format": ((*plot, "p.jpg"), ("--plot = 'p.jpg'", ".svg or .png")),
        "a plot onto a folder": ((*plot, "folder.svg"), ("--plot", "is a folder")),
        "a plot in /proc": ((*plot, "/proc/p.svg"), ("--plot", "cannot be written")),
        "a plot below a file": ((*plot, "file/p.svg"), ("--plot", "cannot be written")),
        "a report onto a folder": (("report", "--out", "folder.json"), ("--out", "is there already")),
        "a report below a file": (("report", "--out", "file/r"), ("--out", "cannot be written")),
        "a report of a long name": (("report", "--out", LONG), ("--out", "longer than a path can be")),
        "an export onto a folder": (("export", "model", "folder.json"), ("target", "is there already")),
        "an export in /proc": (("export", "dataset", "/proc/x"), ("target", "cannot be written")),
    }
    for name, (given, said) in rows.items():
        yield Case("output", name, given, said, {"folder.json": None, "folder.svg": None, "file": b"x"})


def environments() -> Iterator[Case]:
    """Variables of the environment."""
    store = "FORTIFAI_STORE"
    rows: dict[str, tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
        "a store that is no URL": (("ls",), {store: "://"}, ("store = '://'", "name a folder")),
        "a store at nobody's": (("ls",), {store: "~nosuchuser/s"}, ("no such user",)),
        "a store of a long name": (("ls",), {store: LONG}, ("longer than a path can be",)),
        "a store not UTF-8": (("ls",), {store: os.fsdecode(b"/tmp/\xff")}, ("store", "is no path")),
        "a mirror that is not there": (
            ("plan", "wikitext-small"),
            {"FORTIFAI_DATA": "/nowhere"},
            ("FORTIFAI_DATA = '/nowhere'", "is not a folder"),
        ),
        "a mirror at nobody's": (
            ("plan", "wikitext-small"),
            {"FORTIFAI_DATA": "~nosuchuser"},
            ("FORTIFAI_DATA = '~nosuchuser'", "no such user"),
        ),
        "a mirror that is empty": (
            ("plan", "wikitext-small"),
            {"FORTIFAI_DATA": "."},
            ("corpus", "FORTIFAI_DATA", "unset"),
        ),
        "a cache at nobody's": (
            ("ls", "--store", "memory://x"),
            {"FORTIFAI_CACHE": "~nosuchuser"},
            ("FORTIFAI_CACHE", "no such user"),
        ),
    }
    for name, (given, environment, said) in rows.items():
        yield Case("environment", name, given, said, environment=environment)


def stores() -> Iterator[Case]:
    """Addresses of stores, and what may lie there."""
    for url in (
        "://", "://x", "s3:/bucket", "s3:bucket", "S3://bucket", "file:x", "http://host/store", "https://host/store",
        "zip://a::file://b.zip", "simplecache::s3://bucket", "nosuch://bucket", "file://host/folder", "data://x",
        "~nosuchuser/store", f"/tmp/{LONG}", "x/" * 3000,
    ):  # fmt: skip
        for command in (("plan", "smoke"), ("ls",)):
            yield Case("store", f"{command[0]} {url[:40]}", (*command, "--store", url), ("store",))
    from storage.store.experiments import experiment_id

    plan = ("run", "smoke", "--store", "s")
    yield Case("store", "a file", plan, ("/s", "read and write"), {"s": b"x"})
    yield Case("store", "in /proc", ("run", "smoke", "--store", "/proc/s"), ("/proc/s", "read and write"))
    record = {
        "id": "0" * 64, "name": "x", "created": "", "updated": "", "status": "failed", "stages": [], "process": "",
    }  # fmt: skip
    for name, config, said in (
        ("a field too many", {"name": "x", "luck": 1}, ("luck = 1", "no such field")),
        ("a wrong name", {"name": "x", "losses": [{"type": "x"}]}, ("losses.0", "expected tags")),
        ("a seed beyond 64 bits", {"name": "x", "seeds": [2**63]}, ("seeds.0", "64 bits")),
        ("true for a number", {"name": "x", "splits": True}, ("splits = True", "give a number")),
    ):
        identity = experiment_id(config)
        content = json.dumps(
            {**record, "id": identity, "created": MOMENT, "updated": MOMENT, "config": config}
        ).encode()
        files = {f"s/experiments/x-{identity[:8]}.json": content}
        yield Case("store", f"a record with {name}", ("resume", "x", "--store", "s"), said, files)
    for name, content in (
        ("of another configuration", json.dumps({**record, "config": {"name": "x"}}).encode()),
        ("that is no JSON", b"{"),
        ("of wrong types", json.dumps({**record, "config": []}).encode()),
    ):
        files = {f"s/experiments/x-{'0' * 8}.json": content}
        said = (f"x-{'0' * 8}.json", "no experiment record")
        yield Case("store", f"a record {name}", ("resume", "x", "--store", "s"), said, files)
    for name, query in {
        "no SQL": "hello",
        "nothing": "",
        "two statements": "select 1; select 2",
        "a change": "create table x (a int)",
        "a file": "select * from read_csv('/etc/passwd')",
        "a copy": "copy (select 1) to 'x.csv'",
        "a setting": "set enable_external_access = true",
        "an extension": "install httpfs",
        "a NUL": "select '\0'",
    }.items():
        said = ("argument 2",) if "\0" in query else ("sql",)
        yield Case("store", f"asked: {name}", ("sql", query), said, {f"{STORE}/experiments/.keep": b""})


def cases() -> list[Case]:
    """Every bad input."""
    tables_of = (
        configs, overrides, corpora, questions, tables, models, arguments, outputs, environments, stores,
    )  # fmt: skip
    return [case for table in tables_of for case in table()]


def main() -> int:
    """Try every case, or those of the kinds given; say how many, and which were not refused as they should be."""
    wrong, tried = [], Counter[str]()
    wanted = sys.argv[1:]
    for case in cases():
        if wanted and case.kind not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = attempt(case, Path(folder))
        tried[case.kind] += 1
        lines = outcome.err.rstrip("\n").splitlines()
        if outcome.code != 2 or len(lines) != 1 or not all(part in lines[0] for part in case.said):
            wrong.append(f"{case.id}: exit code {outcome.code}, {outcome.err[-300:]!r}")
    for kind, count in tried.items():
        print(f"{kind:<12} {count:>4}")
    print(f"{tried.total()} bad inputs tried, {tried.total() - len(wrong)} refused in one line with exit code 2")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
