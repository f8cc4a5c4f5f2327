"""Algorithm 1 on a GPU machine that reaches no registry: weights and data go there in parts, and results come back.

    python examples/gpu_kit.py pack --models smollm2      here: .gpu-kit/kit.json and parts of at most 55 MB
    python examples/gpu_kit.py run                        there, in a checkout with .gpu-kit: joins them, then runs

`run` ends by itself after --minutes (status 75 where something is left) and goes on when it is called again with what
it wrote: .gpu-kit/results. What it does not know goes to examples/algorithm1.py. `make gpu-kit` packs wheels as well.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PART = 55_000_000
DATA = ("wikitext-2-v1/train.txt.gz", "wikitext-2-v1/validation.txt.gz", "kr-test/wikitext-2.json")


def pack(args, _):
    from storage.sources import pretrained
    from storage.sources.model_packages import PACKAGES

    known = {package.name: package for package in PACKAGES}
    if unknown := [name for name in args.models if name not in known]:
        sys.exit(f"--models {unknown[0]}: is unknown; known: {', '.join(known)}")
    data = Path(os.environ.get("FORTIFAI_DATA", ""))
    files = {f"models/{name}/{known[name].file}": known[name].path(pretrained.root()) for name in args.models}
    files |= {f"data/{name}": data / name for name in DATA}
    files |= {f"wheels/{file.name}": file for file in sorted(args.kit.glob("wheels/*.whl"))}
    for file in files.values():
        if not file.is_file():
            sys.exit(f"{file}: is not there: `make models` fetches weights, and FORTIFAI_DATA names a folder of data")
    whole = args.kit / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for name, file in files.items():
            archive.add(file, name)
    digests = {}
    with whole.open("rb") as opened:
        for number in itertools.count():
            if not (content := opened.read(PART)):
                break
            part = args.kit / f"part-{number:02}"
            part.write_bytes(content)
            digests[part.name] = hashlib.sha256(content).hexdigest()
    whole.unlink()
    (args.kit / "kit.json").write_text(json.dumps({"parts": digests, "models": args.models}, indent=1))
    print(f"{args.kit}: {len(digests)} parts, {sum(file.stat().st_size for file in files.values()) / 1e6:.0f} MB")


def join(kit):
    """The files of all parts, and the models as safetensors; a kit that was joined is left alone."""
    described, joined = json.loads((kit / "kit.json").read_text()), kit / "joined"
    if not (joined / "done").exists():
        for name, digest in described["parts"].items():
            if not (kit / name).is_file() or hashlib.sha256((kit / name).read_bytes()).hexdigest() != digest:
                sys.exit(f"{kit / name}: is missing or damaged; it has to be brought again")
        whole = kit / "whole.tar"
        whole.write_bytes(b"".join((kit / name).read_bytes() for name in described["parts"]))
        with tarfile.open(whole) as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):  # extractall's filter is younger than Python 3.11
                file = joined / member.name
                if not file.resolve().is_relative_to(joined.resolve()):
                    sys.exit(f"{kit}: holds {member.name}, which lies outside it; it is no kit of ours")
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as out:
                    shutil.copyfileobj(archive.extractfile(member), out)
        whole.unlink()
        wheels = [str(file) for file in joined.glob("wheels/*.whl")]
        options = ("--quiet", "--no-index", "--no-deps", "--upgrade", "--target", str(joined / "site"))
        if wheels:
            subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
        (joined / "done").touch()
    sys.path.insert(0, str(joined / "site"))
    for name in described["models"]:
        if not (joined / "weights" / name / "config.json").exists():
            from storage.sources.pretrained import Pretrained

            (file,) = (joined / "models" / name).glob("*.gguf")
            found = Pretrained.find(str(file.parent), None, file.name)
            found.fetch_tokenizer().save_pretrained(joined / "weights" / name)
            found.fetch_model(dtype="float32").save_pretrained(joined / "weights" / name)
    return described["models"], joined


def run(args, rest):
    began = time.monotonic()
    models, joined = join(args.kit)
    results = args.kit / "results"
    results.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(joined / "site"), str(ROOT)])}
    waiting, running, left = list(itertools.product(args.seeds, models, args.arms)), {}, False
    while waiting or running:
        seconds = 60 * args.minutes - (time.monotonic() - began)
        if waiting and len(running) < args.together:
            seed, model, arm = waiting.pop(0)
            out = results / f"{model}-{arm}-{seed}.jsonl"
            how = ["--model", str(joined / "weights" / model), "--corpus", str(joined / "data"), "--out", str(out)]
            how += ["--arms", arm, "--seeds", str(seed), "--seconds", str(seconds), *rest]
            command = [sys.executable, str(ROOT / "examples" / "algorithm1.py"), *how]
            running[out.stem] = subprocess.Popen(command, env=environment)
            continue
        time.sleep(0.2)
        for name, process in list(running.items()):
            if process.poll() is not None or seconds < 0:  # what was computed of a generation that is cut off is lost
                process.kill() if process.poll() is None else None
                if process.wait() not in (0, 75, -9):
                    sys.exit(f"{name}: failed")
                left = left or process.wait() != 0
                del running[name]
        if seconds < 0:
            left, waiting = left or bool(waiting), []
    for file in sorted(results.glob("*.jsonl")):
        for line in map(json.loads, file.open()):
            kept = {k: v for k, v in line.items() if k in ("generation", "retention", "perplexity", "seconds")}
            print(file.stem, json.dumps(kept), flush=True)
    sys.exit(75 if left else 0)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("do", choices=["pack", "run"])
    options.add_argument("--kit", type=Path, default=ROOT / ".gpu-kit")
    options.add_argument("--models", nargs="+", default=["smollm2"], help="of `fortifai models ls`, to be packed")
    options.add_argument("--minutes", type=float, default=8.5)
    options.add_argument("--together", type=int, default=2, help="processes that share the GPU")
    options.add_argument("--arms", nargs="+", default=["ce", "tce-0.9"])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args, rest = options.parse_known_args()
    (pack if args.do == "pack" else run)(args, rest)


if __name__ == "__main__":
    main()
