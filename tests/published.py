"""Small corpora in exactly the files and folders that their publishers use."""

import gzip
import io
import json
import random
import tarfile
import zipfile

WORDS = {
    "house": ("Haus", "casa"), "tree": ("Baum", "copac"), "water": ("Wasser", "apa"), "road": ("Weg", "drum"),
    "stone": ("Stein", "piatra"), "light": ("Licht", "lumina"), "night": ("Nacht", "noapte"), "bread": ("Brot", "paine"),
    "mill-wheel": ("Mühl-Rad", "roata"), "fish": ("Fisch", "peste"),
}  # fmt: skip


def sentences(count, seed, longest=8):
    """Triples of sentences in English, German and Romanian, each of its own."""
    generator, found = random.Random(seed), {}
    while len(found) < count:
        words = generator.choices(list(WORDS), k=generator.randint(3, longest))
        found[" ".join(words)] = (words, [WORDS[word][0] for word in words], [WORDS[word][1] for word in words])
    return list(found.values())


def splits(train=60, valid=4, test=5):
    """{split: sentences}, with no sentence in two splits."""
    every = sentences(train + valid + test, 1)
    return {"train": every[:train], "valid": every[train : train + valid], "test": every[train + valid :]}


def text(lines):
    return "".join(" ".join(words) + " .\n" for words in lines)


def write_tar(path, files):
    """A gzipped tar archive of {name: text or bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, files):
    """A zip archive of {name: text}."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def headlines():
    """{split: (articles, titles)}: tokenised, in lower case, digits as #, unknown words as <unk>."""
    unknown = {"train": "<unk>", "valid": "<unk>", "test": "UNK"}
    return {
        split: (
            "".join(
                f"the {' '.join(words)} {unknown[split]} 's #.## -lrb- {words[0]} -rrb- , it said .\n"
                for words, _, _ in rows
            ),
            "".join(f"{words[0]} {unknown[split]} 's {words[-1]}\n" for words, _, _ in rows),
        )
        for split, rows in splits().items()
    }


def gigaword(path):
    """summary.tar.gz of Rush et al."""
    found, zipped = headlines(), lambda lines: gzip.compress(lines.encode("utf-8"))
    return write_tar(path, {
        "sumdata/train/train.article.txt.gz": zipped(found["train"][0]),
        "sumdata/train/train.title.txt.gz": zipped(found["train"][1]),
        "sumdata/train/valid.article.filter.txt": found["valid"][0],
        "sumdata/train/valid.title.filter.txt": found["valid"][1],
        "sumdata/Giga/input.txt": found["test"][0],
        "sumdata/Giga/task1_ref0.txt": found["test"][1],
        "sumdata/DUC2003/input.txt": "another test set\n",
    })  # fmt: skip


def gigaword_of_unilm(path):
    """ggw_data.zip of UniLM."""
    files = {"data/train.src": "subwords of a model, not read\n"}
    for split, (articles, titles) in headlines().items():
        name = {"train": "train", "valid": "dev", "test": "test"}[split]
        files.update({f"org_data/{name}.src.txt": articles, f"org_data/{name}.tgt.txt": titles})
    return write_zip(path, files)


def diffuseq(folder, name):
    """DiffuSeq's folder of three files of JSON lines."""
    (folder / name).mkdir(parents=True)
    for split, rows in splits().items():
        lines = (
            {"src": f"How long is the {' '.join(words)}?", "trg": f"What is {words[0]}'s {words[1]}?"}
            for words, _, _ in rows
        )
        (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / name


def quora(path, pairs=300):
    """quora_duplicate_questions.tsv: every third pair is no duplicate, and a field may be quoted."""
    rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    for number, (words, _, _) in enumerate(sentences(pairs, 2)):
        question, other = f"What is {' '.join(words)}?", f'"Is ""{words[0]}"" {" ".join(words[1:])} no {number}?"'
        rows.append(f"{number}\t{2 * number}\t{2 * number + 1}\t{question}\t{other}\t{int(number % 3 > 0)}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def sgm(kind, lang, lines):
    """A test set of WMT in SGML."""
    segments = "\n".join(f'<seg id="{i}"> {line} </seg>' for i, line in enumerate(lines, 1))
    kinds = f'<{kind}set setid="newstest" srclang="any" trglang="{lang}">'
    return f'{kinds}\n<doc docid="a">\n<hl>\n{segments}\n</hl>\n</doc>\n</{kind}set>\n'


def wmt14(folder):
    """The five archives of statmt.org, training corpora with a third language beside."""
    rows, langs = splits(), {"en": 0, "de": 1}
    corpora = {
        "training-parallel-europarl-v7.tgz": ("training/europarl-v7.de-en", rows["train"][:30]),
        "training-parallel-commoncrawl.tgz": ("commoncrawl.de-en", rows["train"][30:50]),
        "training-parallel-nc-v9.tgz": ("training/news-commentary-v9.de-en", rows["train"][50:]),
    }
    for archive, (prefix, part) in corpora.items():
        files = {
            f"{prefix}.{lang}": text(row[side] for row in part).replace(" .", " „gut“.") for lang, side in langs.items()
        }
        write_tar(folder / archive, {prefix.replace("de-en", "fr-en") + ".fr": "autre\n", **files})
    for archive, prefix, part in (
        ("dev.tgz", "dev/newstest2013", "valid"),
        ("test-full.tgz", "test-full/newstest2014-deen", "test"),
    ):
        files = {}
        for lang, side in langs.items():
            lines = [f"Q&amp;A: {' '.join(row[side])} „so“ ." for row in rows[part]]
            files.update({f"{prefix}-{kind}.{lang}.sgm": sgm(kind, lang, lines) for kind in ("src", "ref")})
        write_tar(folder / archive, files)
    return folder


def wmt16_en_ro(path):
    """wmt16.tar.gz of Lee et al.: tokenised, with BPE, and a distilled training set beside."""
    bpe = lambda lines: "".join(
        " ".join(f"{w[:3]}@@ {w[3:]}" if len(w) > 4 else w for w in words) + " &apos;s .\n" for words in lines
    )
    names = {"train": "train/corpus", "valid": "dev/dev", "test": "test/test"}
    files = {"wmt16/en-ro/distill/enro/corpus.bpe.ro": "not read\n"}
    for split, rows in splits().items():
        for lang, side in (("en", 0), ("ro", 2)):
            files[f"wmt16/en-ro/{names[split]}.bpe.{lang}"] = bpe(row[side] for row in rows)
    return write_tar(path, files)
