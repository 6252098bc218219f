"""Show how sentences come about: one HTML file with each step's tokens, coloured by confidence, and all candidates.

    fastdiss-trace models/multi30k_de_en "Ein Mann schläft auf einer Bank." --steps 5 --length-beam 3 --output trace.html

Without sentences they are read from standard input, one a line.  The file needs nothing beside it: no script, no font,
no network.  Options of decoding are those of fairseq-generate, e.g. ``--option decoding_solver=ddim``.
"""

import argparse
import ast
import sys
from html import escape
from pathlib import Path
from typing import Dict, List, Sequence

from ..errors import FastDiSSError
from ..loading import check_reranker
from ..translator import FastDiSS
from .command import run_as_command

#: Confidences below each bound have one colour; the last bound is 1.
BOUNDS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
CHOICES = {
    "score": "the highest mean log-probability of its tokens",
    "mbr": "the highest log of the mean BLEU against the other candidates",
    "ar": "the highest mean log-probability under the autoregressive model",
}
#: Options of decoding that are options of this command, or always on.
OWN = {
    "steps": "use --steps",
    "decoding_steps": "use --steps",
    "choice": "use --choice",
    "decoding_choice": "use --choice",
    "sentences": "give them as arguments",
    "retain_iter_history": "each step is shown",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fdfdfc; --soft: #5c5f66; --line: #d5d7db;
  --c0: #f6b3a8; --c1: #f9cfa5; --c2: #f7e6a6; --c3: #e3ecab; --c4: #c8e6b4; --c5: #a9dcbb; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --paper: #17181b; --soft: #a6a9b1; --line: #3a3c42;
  --c0: #7d2a20; --c1: #794416; --c2: #6b5a12; --c3: #4f5c18; --c4: #2f5a26; --c5: #14543a; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } p { margin: .3rem 0; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } caption { text-align: left; color: var(--soft); padding: .2rem 0; }
th, td { padding: .15rem .25rem; text-align: left; vertical-align: top; white-space: nowrap; }
tbody th { color: var(--soft); font-weight: normal; padding-right: .8rem; }
.t { display: inline-block; padding: .05rem .4rem; border-radius: .3rem; border: 2px solid transparent; }
.t small { display: block; font-size: .7rem; font-variant-numeric: tabular-nums; }
.new { border-color: currentColor; font-weight: 600; }
.again { border-style: dashed; border-color: var(--soft); }
.c0 { background: var(--c0); } .c1 { background: var(--c1); } .c2 { background: var(--c2); }
.c3 { background: var(--c3); } .c4 { background: var(--c4); } .c5 { background: var(--c5); }
.won td, .won th { font-weight: 600; color: var(--ink); } .num { text-align: right; font-variant-numeric: tabular-nums; }
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="folder made by fastdiss-export")
    parser.add_argument("sentences", nargs="*", help="source sentences (default: lines of standard input)")
    parser.add_argument("--output", type=Path, default=Path("trace.html"), help="file to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="network evaluations K (default: %(default)s)")
    parser.add_argument("--length-beam", type=int, default=1, help="candidate lengths (default: %(default)s)")
    parser.add_argument("--noise-beam", type=int, default=1, help="noise seeds a length (default: %(default)s)")
    parser.add_argument(
        "--choice", choices=CHOICES, default="score", help="how the best is chosen (default: %(default)s)"
    )
    parser.add_argument("--reranker", type=Path, help="autoregressive checkpoint, for --choice ar")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="another option of decoding; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    return parser


def other_options(given: Sequence[str]) -> Dict[str, object]:
    """``NAME=VALUE`` pairs; a value that reads as a Python literal is one.

    Raises:
        FastDiSSError: no ``=``, or an option that the command has itself.
    """
    options = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise FastDiSSError(f"--option takes NAME=VALUE, not '{item}'")
        name = name.replace("-", "_")
        if name in OWN:
            raise FastDiSSError(f"--option {name} is not taken: {OWN[name]}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def token_cell(word: str, probability: float, changed: bool, again: bool) -> str:
    """A token with its confidence, marked where this step changed it or looked at it again in vain."""
    colour = next(i for i, bound in enumerate(BOUNDS) if probability < bound or bound == 1)
    mark = " new" if changed else " again" if again else ""
    said = "changed" if changed else "looked at again" if again else "kept"
    title = f"{word}: confidence {probability:.0%}, {said}"
    return (
        f'<td><span class="t c{colour}{mark}" title="{escape(title)}">{escape(word)}'
        f"<small>{probability:.0%}</small></span></td>"
    )


def steps_table(words, hypothesis: Dict, caption: str) -> str:
    """A row of tokens for each step of a candidate; ``words`` makes words of token ids."""
    rows, before = [], None
    for number, step in enumerate(hypothesis["history"], 1):
        now = list(zip(words(step["tokens"]), step["positional_scores"].exp().tolist()))
        earlier = before or [(None, None)] * len(now)
        cells = [
            token_cell(word, p, before is not None and word != old, before is not None and p != old_p)
            for (word, p), (old, old_p) in zip(now, earlier)
        ]
        rows.append(f'<tr><th scope="row">step {number}</th>{"".join(cells)}</tr>')
        before = now
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><tbody>{"".join(rows)}</tbody></table></div>'
    )


def candidates_table(texts: Sequence[str], found: List[Dict], choice: str) -> str:
    """All candidates, best first, with what they were ordered by."""
    head = '<tr><th scope="col">rank</th><th scope="col" class="num">score</th><th scope="col" class="num">tokens</th>'
    head += '<th scope="col" class="num">mean log-probability</th><th scope="col">text</th></tr>'
    rows = []
    for rank, (text, hypothesis) in enumerate(zip(texts, found), 1):
        numbers = float(hypothesis["score"]), len(hypothesis["tokens"]), float(hypothesis["positional_scores"].mean())
        cells = "".join(
            f'<td class="num">{n:.3f}</td>' if isinstance(n, float) else f'<td class="num">{n}</td>' for n in numbers
        )
        won = ' class="won"' if rank == 1 else ""
        rows.append(
            f'<tr{won}><th scope="row">{rank}{" (chosen)" if rank == 1 else ""}</th>{cells}<td>{escape(text)}</td></tr>'
        )
    caption = f"Candidates. Chosen: {CHOICES[choice]} (score)."
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def section(model: FastDiSS, number: int, sentence: str, found: List[Dict], choice: str) -> str:
    """A sentence: the chosen candidate's steps, the candidates, and the others' steps folded away."""
    words = lambda tokens: [model.task.target_dictionary[i] for i in tokens.tolist()]
    texts = [model.text(hypothesis["tokens"]) for hypothesis in found]
    parts = [f'<section><h2>{number}. <span lang="">{escape(sentence)}</span></h2>', f"<p>{escape(texts[0])}</p>"]
    parts.append(steps_table(words, found[0], f"The chosen candidate after each of {len(found[0]['history'])} steps"))
    if len(found) > 1:
        parts.append(candidates_table(texts, found, choice))
        others = (steps_table(words, h, f"Candidate {i}: {t}") for i, (h, t) in enumerate(zip(found[1:], texts[1:]), 2))
        parts.append(f"<details><summary>Steps of the other candidates</summary>{''.join(others)}</details>")
    return "\n".join([*parts, "</section>"])


def page(model: FastDiSS, sentences: Sequence[str], steps: int, choice: str, options: Dict[str, object]) -> str:
    """The HTML document; ``options`` of decoding as in :meth:`FastDiSS.search`.

    Raises:
        FastDiSSError: an unknown option, or a value out of its range.
    """
    found = model.search(sentences, steps, retain_iter_history=True, decoding_choice=choice, **options)
    lower = (0.0, *BOUNDS[:-1])
    legend = " ".join(f'<span class="t c{i}">{a:.0%} to {b:.0%}</span>' for i, (a, b) in enumerate(zip(lower, BOUNDS)))
    settings = ", ".join(f"{name} {value}" for name, value in {"steps": steps, "choice": choice, **options}.items())
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>FastDiSS: {len(sentences)} sentences step by step</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f'<h1>FastDiSS, step by step</h1>\n<p class="soft">{escape(settings)}</p>',
            f"<p>Confidence of a token when it was predicted last: {legend}</p>",
            '<p>A framed token <span class="t new">changed</span> in this step; one with a dashed frame '
            '<span class="t again">was looked at again</span> and stayed. @@ joins pieces of a word. '
            "Of equal tokens in a row the result has one, unless repeats are kept.</p>",
            *(section(model, i, s, f, choice) for i, (s, f) in enumerate(zip(sentences, found), 1)),
            "</main>\n</body>\n</html>\n",
        ]
    )


def main(arguments=None):
    args = get_parser().parse_intermixed_args(arguments)
    sentences = args.sentences or [line.rstrip("\n") for line in sys.stdin]
    if not sentences:
        raise FastDiSSError("no sentences: give them as arguments or as lines of standard input")
    check_reranker([args.choice], args.reranker)
    options = {"length_beam": args.length_beam, "noise_beam": args.noise_beam, **other_options(args.option)}
    model = FastDiSS.from_pretrained(args.bundle, args.device, args.reranker)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page(model, sentences, args.steps, args.choice, options), encoding="utf-8")
    print(f"{args.output}: {len(sentences)} sentence{'s' if len(sentences) > 1 else ''}")


def cli_main():
    run_as_command(main)
