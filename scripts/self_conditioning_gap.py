#!/usr/bin/env python3
"""SCP's premise, measured without decoding: does an estimate as few-step decoding has it serve a model worse than
one as training without SCP makes it?

    self_conditioning_gap.py data-bin/multi30k_de_en --path runs/*/checkpoint_last.pt --output results.json --cpu

For each K, the reference is noised along one trajectory, from each t = i/K of the grid (0 < i < K) on to 1, and the
network looks at z_t with each of these estimates:

    none      z_bar = 0
    fresh     made at t, with z_bar = 0: training without SCP
    rehearsed made at t + 1/K, with z_bar = 0: SCP's, at this K
    reused    made at t + 1/K, itself with the one before it, and so on from t = 1: as in decoding with K steps

Writes a list of records, and prints a table, means over tokens and times: the rounding accuracy of the network's answer
("accuracy", %) and its cross-entropy, the accuracy of the estimate, and how many answers are the estimate's ("agreement", %).
All tokens of a sentence share one t.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from fastdiss_fairseq.compat import device, kept_casts
from fastdiss_fairseq.diffusion.noise import fold, gaussian
from fastdiss_fairseq.diffusion.times import uniform_grid
from fastdiss_fairseq.diffusion.training import TrainingPlan
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.loading import load, weights_of
from fastdiss_fairseq.models.config import trained_with
from fastdiss_fairseq.models.fastdiss import FastDiSSModel
from fastdiss_fairseq.modules.places import Places
from fastdiss_fairseq.modules.rounding import nearest_token, rounding_loss
from fastdiss_fairseq.tools.command import run_as_command
from fastdiss_fairseq.tools.records import circumstances, complete, save
from fastdiss_fairseq.tools.sweep import batches, facts_of

ESTIMATES = ("none", "fresh", "rehearsed", "reused")
#: Of all tokens, in percent.
SHARES = ("accuracy", "accuracy_of_estimate", "agreement")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder made by fairseq-preprocess")
    parser.add_argument("--path", nargs="+", required=True, help="FastDiSS checkpoints")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where records are written (JSON)")
    parser.add_argument("--subset", default="valid", help="split (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 5, 10], help="K (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="sentences a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser.parse_args()


class Looks:
    """What the network says of one batch's reference at times along one trajectory."""

    def __init__(self, model, sample, seed: int):
        self.model, self.target = model, sample["target"]
        mask = self.target.ne(model.padding_idx)
        self.real, self.source = Places.of(mask), model.encode(sample["net_input"]["src_tokens"])
        self.shared, self.z_0 = model.denoiser.target(mask), model.embedding(self.target)
        self.key = fold(sample["id"].long(), "trajectory", seed)
        self.how = str(trained_with(model.cfg, "self_conditioning_estimate") or TrainingPlan.estimate)

    def trajectory(self, grid):
        """z at ascending times (n,), each noised further from the one before: [(t (B, 1), z)]."""
        found = []
        for number, time in enumerate(grid):
            t = self.z_0.new_full((len(self.z_0), 1), time)
            noise = gaussian(fold(self.key, number), *self.z_0.shape[1:])
            if not found:
                found.append((t, self.model.process.diffuse(self.z_0, t, noise)))
            else:
                found.append((t, self.model.process.diffuse_further(found[-1][1], found[-1][0], t, noise)))
        return found

    def at(self, point, z_bar=None):
        """(B, T, D) answers of the network at a point of the trajectory."""
        t, z = point
        z_bar = torch.zeros_like(z) if z_bar is None else z_bar
        return self.model.denoise(z, self.model.time_inputs(t), z_bar, self.shared, self.source.memory)

    def refined(self, answer):
        return self.model.refine(answer, self.real, self.how).to(self.z_0.dtype)

    def tokens(self, answer):
        """(N,) nearest tokens of the answers at real positions."""
        return nearest_token(*self.model.rounded(self.real.take(answer)))

    def sums(self, answer, estimate=None):
        """Over tokens: the answer's cross-entropy and right tokens; right tokens of the estimate, and those alike."""
        target = self.real.take(self.target)
        loss = rounding_loss(*self.model.rounded(self.real.take(answer)), target).loss
        answered = self.tokens(answer)
        found = [loss.double(), answered == target]
        if estimate is not None:
            before = self.tokens(estimate)
            found += [before == target, before == answered]
        return torch.stack([one.sum().double().cpu() for one in found])

    def all(self, steps: int):
        """{estimate: :meth:`sums` over the grid's times}, and the number of tokens looked at."""
        ascending = uniform_grid(steps)[-2::-1]
        found, looks = dict.fromkeys(ESTIMATES, 0), 0
        for start in range(len(ascending) - 1):
            points = self.trajectory(ascending[start:])
            reused = None
            for point in reversed(points[1:]):
                answer = self.at(point, reused)
                reused = self.refined(answer)
            fresh = self.at(points[0])
            found["none"] += self.sums(fresh)
            for name, made in (("fresh", fresh), ("rehearsed", self.at(points[1])), ("reused", answer)):
                answered = self.at(points[0], self.refined(made))
                found[name] += self.sums(answered, made)
            looks += len(self.real.index)
        return found, looks


def measure(path, args) -> list:
    """The records of one checkpoint."""
    path = weights_of(path)
    models, _, task = load(path, args.data, eval_bleu=False)
    model = models[0].to(device(args)).eval()
    if not isinstance(model, FastDiSSModel):
        raise FastDiSSError(f"{path} is no FastDiSS model")
    facts, found = facts_of(str(path)), []
    samples = batches(task, args)
    for steps in args.steps:
        sums, count = dict.fromkeys(ESTIMATES, 0), 0
        for sample in tqdm(samples, desc=f"{facts['system']}, K = {steps}", disable=None):
            with torch.no_grad(), kept_casts():
                some, looks = Looks(model, sample, args.seed).all(steps)
            count += looks
            for name in ESTIMATES:
                sums[name] += some[name]
        for name in ESTIMATES:
            loss, *shares = (sums[name] / count).tolist()
            scores = {"cross_entropy": round(loss, 4)}
            scores.update(zip(SHARES, (round(100 * share, 2) for share in shares)))
            found.append({**facts, "steps": steps, "self_conditioning": name, "tokens": count, **scores})
    return found


def main() -> None:
    args = arguments()
    if min(args.steps) < 2:
        raise FastDiSSError("--steps: nothing is reused in fewer than 2 steps")
    args.output.parent.mkdir(parents=True, exist_ok=True)  # before there is anything to lose
    common = {
        "benchmark": args.data.resolve().name,
        "split": args.subset,
        "metric": "accuracy",
        "noise_seed": args.seed,
    }
    common.update(circumstances("self_conditioning_gap.py", device(args)))
    records = []
    for path in args.path:
        for record in measure(path, args):
            records.append(complete({**common, **record, "value": record["accuracy"]}))
            save(args.output, records)
    print("| system | K | estimate | cross-entropy | accuracy, % | accuracy of the estimate, % | agreement, % |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for r in records:
        figures = [str(r.get(name, "")) for name in ("cross_entropy", *SHARES)]
        print(f"| {r['system']} | {r['steps']} | {r['self_conditioning']} | {' | '.join(figures)} |")


if __name__ == "__main__":
    run_as_command(main)
