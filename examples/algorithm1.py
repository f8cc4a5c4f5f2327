"""The paper's Algorithm 1 in one file: train, rewrite what was read, ask, and again. No store, no orchestration.

    python examples/algorithm1.py --model FOLDER --corpus almanac --arms ce tce-0.9
    python examples/algorithm1.py --model FOLDER --corpus WIKITEXT --device cuda --out results.jsonl

Reads the almanac, or a folder laid out as FORTIFAI_DATA names it, for WikiText-2 and its KR-test. Without a model, a
tiny one with random weights shows that it runs. One JSON line for each arm, seed and generation; M_-1 is generation -1.
With --out, the same command goes on after the last generation that ended; with --seconds it ends itself (status 75)
where the next generation would take longer than what is left.
"""

import argparse
import contextlib
import gzip
import itertools
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.config.stages import Regeneration, Regime
from fortifai_core.corpus.almanac.world import generate_almanac
from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.packing import collate, pack
from fortifai_core.corpus.schedule import SplitVersion, regenerated, splits_seen, training_set
from fortifai_core.corpus.splitting import assign_questions, cut
from fortifai_core.corpus.tokenization import encode_documents, train_tokenizer
from fortifai_core.corpus.wikitext import articles
from fortifai_core.language.rewriting.blocks import Rewriting, TokenisedDocument
from fortifai_core.language.rewriting.regenerate import regenerate
from fortifai_core.measures.retention import retention, score_questions
from fortifai_core.measures.text_counts import perplexity
from kernels import install_loss_head, losses


def read(args, seed):  # documents, questions about them, held-out documents
    if args.corpus == "almanac":
        world = AlmanacCorpus(entities=args.entities, facts=4, pretraining_entities=4, validation_entities=8)
        source = generate_almanac(world, splits=args.splits, seed=seed)
        return source.documents, source.questions, source.validation
    folder = Path(args.corpus)
    files = [folder / "wikitext-2-v1" / f"{name}.txt.gz" for name in ("train", "validation")]
    texts = [gzip.decompress(file.read_bytes()).decode().split("\n") for file in files]
    real, held_out = (articles(lines, source=file.stem, raw=True) for lines, file in zip(texts, files, strict=True))
    documents = real.documents[: args.documents]
    known = {document.id for document in documents}
    asked = json.loads((folder / "kr-test" / "wikitext-2.json").read_text())
    found = [(str(n), real.locate(q["location"]), q) for n, q in enumerate(asked)]
    named = [Question(n, d, q["context"], q["sentence_true"], q["sentence_false"]) for n, d, q in found if d in known]
    return documents, named, held_out.documents[: args.documents]


def load(args, documents):
    if args.model:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), tokenizer
    tokenizer = train_tokenizer([document.text for document in documents], vocabulary=512)
    shape = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **shape)), tokenizer


def generation(i, model, texts, args, loss, seed, tokenizer):  # Algorithm 1, once: M_i from M_(i-1), and what it writes
    read, stream = [0, 0], []  # tokens: real, synthetic
    for version in training_set(Regime.PAPER, i):  # D_0^(i), D_1^(i-1), …, D_i^(0)
        stream += [list(document.tokens) for document in texts[version]]
        read[not version.real] += sum(len(document.tokens) for document in texts[version])
    rows = list(pack(stream, sequence_length=args.length, end_of_text=tokenizer.eos_token_id))
    train(model, rows, args, loss, seed * 1000 + i)
    # never written: special tokens, and entries by which a vocabulary is padded
    special = {*tokenizer.all_special_ids, *range(len(tokenizer), model.config.get_text_config().vocab_size)}
    blocks = {"block_tokens": args.block, "context_tokens": args.context, "head_tokens": max(1, args.context // 3)}
    settings = Regeneration(engine="aligned", decoding="sample", temperature=args.temperature, **blocks)
    for old in regenerated(Regime.PAPER, i) if i < args.generations - 1 else []:  # D_k^(j+1) from D_k^(j)
        parts = ("regenerate", seed, i, old.split, old.version)
        how = {"suppress": sorted(special), "pad_id": tokenizer.eos_token_id, "budget": args.budget}
        rewriting = Rewriting(settings, seed_parts=parts, **how)
        texts[SplitVersion(old.split, old.version + 1)] = regenerate(model, texts[old], rewriting)
    return read


def train(model, rows, args, loss, seed):
    head, step = install_loss_head(model, loss=loss), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    steps = args.epochs * -(-len(rows) // args.batch)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(args.epochs):
        for chosen in torch.randperm(len(rows), generator=draw).split(args.batch):
            optimizer.param_groups[0]["lr"] = args.lr * (1 - step / steps)
            batch = collate([{"input_ids": rows[i]} for i in chosen], pad_id=0)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
                value = model(**{name: tensor.to(args.device) for name, tensor in batch.items()}).loss
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    model.eval()
    head.remove()


def ask(model, tokenizer, questions, validation, splits):
    asked = [question for question in questions if question.split in splits]
    first = tokenizer("a")["input_ids"][0]  # a BOS only where the tokenizer puts it before every text
    bos = first if first == tokenizer.bos_token_id else None
    how = {"variant": "sum", "batch": 64, "bos_id": bos}
    scores = score_questions(model, lambda text: encode_documents(tokenizer, [text])[0], asked, **how)
    of_split = {k: [s for s, q in zip(scores, asked, strict=True) if q.split == k] for k in splits}
    measured = {"retention": {k: round(retention(of), 4) for k, of in of_split.items() if of}, "questions": len(asked)}
    measured["scores"] = [
        (s.question, q.document, q.split, s.logp_true, s.logp_false) for s, q in zip(scores, asked, strict=True)
    ]
    return measured | {"perplexity": round(perplexity(model, validation, batch=16, sequence_length=256)[0], 3)}


def run(args, arm, seed, out, began):
    documents, questions, held_out = read(args, seed)
    model, tokenizer = load(args, documents)
    model.to(args.device).eval()
    real = encode_documents(tokenizer, [document.text for document in documents])
    split_of = cut([len(tokens) for tokens in real], splits=args.splits)
    questions = assign_questions(questions, {d.id: k for d, k in zip(documents, split_of, strict=True)})
    texts = {SplitVersion(k, 0): [] for k in range(args.splits)}  # D_k^(0)
    for n, (document, tokens) in enumerate(zip(documents, real, strict=True)):
        texts[SplitVersion(split_of[n], 0)].append(TokenisedDocument(document.id, n, tokens))
    validation = encode_documents(tokenizer, [document.text for document in held_out])
    loss = losses.cross_entropy() if arm == "ce" else losses.truncated(float(arm.removeprefix("tce-")))
    state = args.out.with_suffix(f".{arm}-{seed}.pt") if args.out else None
    first = resumed(state, args, arm, seed, model, texts, out) if state else -1
    taken = 0.0
    for i in range(first, args.generations):
        started = time.perf_counter()
        if taken and started - began + 1.4 * taken > args.seconds:
            sys.exit(75)
        read_tokens = generation(i, model, texts, args, loss, seed, tokenizer) if i >= 0 else (0, 0)
        seen = splits_seen(Regime.PAPER, i) if i >= 0 else list(range(args.splits))
        measured = ask(model, tokenizer, questions, validation, seen)
        line = {"arm": arm, "seed": seed, "generation": i, **measured, "seconds": time.perf_counter() - started}
        if args.out:  # what `fortifai import` needs besides
            line |= {"tokens": sum(read_tokens), "synthetic": read_tokens[1], "settings": vars(args) | {"out": None}}
        else:
            del line["scores"]
        taken = line["seconds"]
        print(json.dumps(line), file=out, flush=True)
        if state:
            written = {(v.split, v.version): [list(d.tokens) for d in of] for v, of in texts.items()}
            saved = {"next": i + 1, "at": out.tell(), "texts": written, "model": model.state_dict()}
            torch.save(saved, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
    if state:
        state.unlink(missing_ok=True)


def resumed(state, args, arm, seed, model, texts, out):  # the generation to go on with
    if not state.exists():
        lines = [(json.loads(line), len(line)) for line in args.out.open()]
        if any((x["arm"], x["seed"], x["generation"]) == (arm, seed, args.generations - 1) for x, _ in lines):
            return args.generations
        out.truncate(sum(size for x, size in lines if (x["arm"], x["seed"]) != (arm, seed)))
        return -1
    saved = torch.load(state, map_location=args.device, weights_only=True)
    out.truncate(saved["at"])  # a line whose state was never saved
    model.load_state_dict(saved["model"])
    for (k, j), tokens in saved["texts"].items():
        known = texts[SplitVersion(k, 0)]
        texts[SplitVersion(k, j)] = [TokenisedDocument(d.id, d.position, t) for d, t in zip(known, tokens, strict=True)]
    return saved["next"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"splits": 6, "generations": 6, "epochs": 10, "batch": 64, "length": 128, "context": 48, "block": 16}
    others = {"entities": 32, "documents": 600, "lr": 3e-4, "temperature": 0.6, "corpus": "almanac", "model": ""}
    others |= {"seconds": 1e9, "budget": 32_768}  # positions of keys and values in memory at once
    others["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in {**numbers, **others}.items():
        options.add_argument(f"--{name}", type=type(value), default=value)
    options.add_argument("--arms", nargs="+", default=["ce", "tce-0.9"])
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--bfloat16", action="store_true", help="autocast in training")
    options.add_argument("--out", type=Path, help="lines are added to this file instead of being printed")
    args = options.parse_args()
    began = time.perf_counter()
    with args.out.open("a") if args.out else contextlib.nullcontext(sys.stdout) as out:
        for seed, arm in itertools.product(args.seeds, args.arms):
            run(args, arm, seed, out, began)


if __name__ == "__main__":
    main()
