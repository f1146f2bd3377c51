"""Which recipe scores best? python benchmarks/recipes.py CSV DIR [--only NAME ...] [--seeds 3] [flags of train.py]

Trains each recipe below with seeds 0, 1, 2 by train.py itself, one run folder each in DIR (what is finished is not trained
again), and prints cross-fitted macro-F1: mean and deviation over the seeds, difference to the defaults with the same
seeds (the same folds), the interval of seed 0, minutes; then the mean of all recipes of a seed. A recipe is flags, or
a change of a few lines to one function. `--transfer CSV` first fine-tunes on that file, then starts from it. Flags given here hold for all (`--folds 3`, `--model`).
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

import data
import metrics
import model
import train
from model import EmotionClassifier


def wider(pool, times: int):
    """A head over `times` vectors of the encoder's width, and the pooling (hidden, mask) -> (B, times * H)."""
    begin = EmotionClassifier.__init__

    def init(self, encoder, labels, *args):
        begin(self, encoder, labels, *args)
        self.head = nn.Linear(times * encoder.config.hidden_size, labels)

    EmotionClassifier.__init__ = init
    model.pool = lambda hidden, mask, how: pool(hidden, mask)


def first_and_mean():
    mean = model.pool
    wider(lambda hidden, mask: torch.cat([hidden[:, 0], mean(hidden, mask, "mean")], 1), 2)


def mean_and_max():
    mean = model.pool

    def pool(hidden, mask):
        return torch.cat(
            [mean(hidden, mask, "mean"), hidden.masked_fill(mask.unsqueeze(-1) == 0, -1e4).amax(1)], 1
        )

    wider(pool, 2)


def all_layers():
    """The mean over tokens of a learned mixture of all layers (as ELMo's)."""
    begin = EmotionClassifier.__init__

    def init(self, encoder, *args):
        begin(self, encoder, *args)
        self.mixture = nn.Parameter(torch.zeros(encoder.config.num_hidden_layers + 1))

    def forward(self, input_ids, attention_mask):
        layers = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        hidden = (torch.stack(layers.hidden_states, -1).float() * self.mixture.softmax(0)).sum(-1)
        return self.head(self.dropout(model.pool(hidden, attention_mask, self.pooling)))

    EmotionClassifier.__init__, EmotionClassifier.forward = init, forward


def two_layer_head():
    begin = EmotionClassifier.__init__

    def init(self, encoder, labels, *args):
        begin(self, encoder, labels, *args)
        hidden = encoder.config.hidden_size
        self.head = nn.Sequential(
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, labels)
        )

    EmotionClassifier.__init__ = init


def multi_sample_dropout():
    """The mean loss of five masks before the head (Inoue 2019); the logits' mean stands for it."""

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vector = model.pool(hidden.float(), attention_mask, self.pooling)
        return torch.stack([self.head(self.dropout(vector)) for _ in range(5)]).mean(0)

    EmotionClassifier.forward = forward


def layer_rates(decay: float = 0.85):
    """Each layer's rate is `decay` times the one's above it (Howard and Ruder 2018)."""

    def make_optimizer(net, config):
        blocks = [net.encoder.get_input_embeddings(), *train.layers_of(net.encoder)]
        depth = {id(p): i for i, block in enumerate(blocks) for p in block.parameters()}
        groups = []
        for p in (p for p in net.parameters() if p.requires_grad):
            low = depth.get(id(p), len(blocks))
            rate, kept = config.lr * decay ** (len(blocks) - low), config.weight_decay if p.ndim >= 2 else 0.0
            groups.append({"params": [p], "lr": rate, "weight_decay": kept})
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)

    train.make_optimizer = make_optimizer


def head_rate(times: float = 10):
    """A higher rate for the head, which alone starts at random."""

    def make_optimizer(net, config):
        parts = [net.encoder.parameters(), net.head.parameters()]
        groups = [{"params": [p for p in part if p.requires_grad and (p.ndim >= 2) == matrix], "lr": lr,
                   "weight_decay": config.weight_decay * matrix}
                  for part, lr in zip(map(list, parts), (config.lr, times * config.lr), strict=True)
                  for matrix in (True, False)]  # fmt: skip
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)

    train.make_optimizer = make_optimizer


def two_passes(second):
    """One step on the loss of a pass plus `second(net, batch, y, logits, config)`, which runs another."""

    def train_step(net, optimizer, scaler, micro_batches, config, pos_weight, share=1.0):
        (batch,) = micro_batches
        y = batch.pop("labels")
        logits = net(**batch)
        first = train.loss_per_row(logits, y, config, pos_weight).mean()
        (first + second(net, batch, y, logits, config)).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return torch.stack([first.detach(), norm])

    train.train_step = train_step


def r_drop(weight: float = 0.5):
    """Two passes with other masks, and the divergence between them (Liang et al. 2021)."""

    def second(net, batch, y, a, config):
        b = net(**batch)
        gap = (torch.sigmoid(a) - torch.sigmoid(b)) * (a - b)  # symmetric KL of two Bernoullis
        return train.loss_per_row(b, y, config).mean() + weight * gap.mean()

    two_passes(second)


def adversarial(size: float = 0.5):
    """A second pass with the token vectors moved where the loss grows (FGM, Miyato et al. 2017)."""

    def second(net, batch, y, logits, config):
        table = net.encoder.get_input_embeddings()
        loss = train.loss_per_row(logits, y, config).mean()
        (slope,) = torch.autograd.grad(loss, table.weight, retain_graph=True)
        step = size * slope / (slope.norm() + 1e-12)
        table.weight.data += step
        moved = train.loss_per_row(net(**batch), y, config).mean()
        # the graph holds no copy of the table: only rows looked up, so it may go back before backward
        table.weight.data -= step
        return moved

    two_passes(second)


def before_step(change):
    """`change(net, batch)` on every training batch."""
    step = train.train_step

    def train_step(net, optimizer, scaler, micro_batches, *rest):
        for batch in micro_batches:
            change(net, batch)
        return step(net, optimizer, scaler, micro_batches, *rest)

    train.train_step = train_step


def tokens_dropped(share: float = 0.1):
    """A tenth of the tokens, but for the first, is hidden from attention and pooling."""

    def change(net, batch):
        mask = batch["attention_mask"]
        stays = torch.rand(mask.shape) >= share
        stays[:, 0] = True
        batch["attention_mask"] = mask * stays

    before_step(change)


def mixup(alpha: float = 0.2):
    """Text vectors and labels of two rows in a random proportion (Zhang et al. 2018; of vectors: Guo et al. 2019)."""
    mean = model.pool

    def change(net, batch):
        a = np.random.default_rng(int(torch.randint(2**31, ()))).beta(alpha, alpha)
        order = torch.randperm(len(batch["labels"]))
        net.mix = lambda x: float(a) * x + float(1 - a) * x[order]
        batch["labels"] = net.mix(batch["labels"])

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vector = mean(hidden.float(), attention_mask, self.pooling)
        return self.head(self.dropout(self.mix(vector) if self.training else vector))

    EmotionClassifier.forward = forward
    before_step(change)


def asymmetric_loss():
    """Easy negatives count less (Ridnik et al. 2021: gamma- 4, clip 0.05)."""

    def loss_per_row(logits, y, config, pos_weight=None):
        p = torch.sigmoid(logits)
        negative = (p - 0.05).clamp(min=0)
        return -(y * F.logsigmoid(logits) + (1 - y) * negative**4 * torch.log1p(-negative)).mean(1)

    train.loss_per_row = loss_per_row


def after_loading(change):
    """`change(net, job, k)` on the model of each fold before it is trained."""
    load = train.make_model

    def make_model(job, k):
        net = load(job, k)
        change(net, job, k)
        return net

    train.make_model = make_model


def linear_probe_first(C: float = 0.003):
    """The head starts as a logistic regression on the pretrained text vectors (LP-FT, Kumar et al. 2022)."""

    def change(net, job, k):
        rows, how = np.flatnonzero(job.fold != k), (job.collator(), job.config.device, job.config.precision)
        head, net.head, net.labels = net.head, nn.Identity(), net.head.in_features
        x = train.predict_logits(net, train.subset(job.tokens, rows), *how)
        net.head, net.labels = head, head.out_features
        mean, spread = x.mean(0), x.std(0) + 1e-6  # a dimension may be constant
        for j, y in enumerate(job.table.labels[rows].T):
            fit = LogisticRegression(C=C, max_iter=1000).fit((x - mean) / spread, y)
            weight = fit.coef_[0] / spread
            head.weight.data[j] = torch.from_numpy(weight)
            head.bias.data[j] = float(fit.intercept_[0] - weight @ mean)

    after_loading(change)


def embeddings_frozen():
    after_loading(lambda net, job, k: net.encoder.get_input_embeddings().requires_grad_(False))


def fresh_top_layer():
    """The last layer starts anew (Zhang et al. 2021)."""

    def change(net, job, k):
        for module in train.layers_of(net.encoder)[-1].modules():
            if isinstance(module, nn.Linear):
                module.weight.data.normal_(std=0.02)
                module.bias.data.zero_()

    after_loading(change)


def longer_mean():
    """A running mean over about the last third of the steps instead of the last tenth."""

    @torch.no_grad()
    def update_mean(self):
        taken = self.at["taken"]
        torch._foreach_lerp_(self.mean, self.weights(), 1 - (1 + taken) / (4 + taken))

    train.Fold.update_mean = update_mean


def head_at_half():
    EmotionClassifier.start_at = lambda self, share: None


def rows_in_any_order():
    """As a plain shuffling loader: each batch is as long as its longest row."""

    def batches(lengths, batch_size, seed):
        order = np.random.default_rng(seed).permutation(len(lengths))
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    train.length_batches = batches


def padded_to_128():
    head_at_half()
    rows_in_any_order()
    call = data.Collator.__call__
    data.Collator.__call__ = lambda self, items: call(dataclasses.replace(self, multiple=128), items)


NOTEBOOK = ["--epochs", "4", "--lr", "2e-5"]
RECIPES = {  # name: flags, change
    "defaults": ([], None),
    # from the first notebook's recipe to the defaults
    "notebook: rate 2e-5, first token, padded to 128": (
        [*NOTEBOOK, "--pooling", "cls", "--ema", "0"],
        padded_to_128,
    ),
    "+ batches of similar length": ([*NOTEBOOK, "--pooling", "cls", "--ema", "0"], head_at_half),
    "+ mean pooling": ([*NOTEBOOK, "--ema", "0"], head_at_half),
    "+ rate and epochs by size": (["--ema", "0"], head_at_half),
    "+ head at the labels' shares": (["--ema", "0"], None),  # + running mean of the weights: the defaults
    # what else might help the defaults
    "batches of 8": (["--batch-size", "8"], None),
    "batches of 32": (["--batch-size", "32"], None),
    "four epochs at 1e-4": (["--epochs", "4", "--lr", "1e-4"], None),
    "longer mean of the weights": ([], longer_mean),
    "a tenth of the tokens dropped": ([], tokens_dropped),
    "mixup of text vectors": ([], mixup),
    "focal loss": (["--loss", "focal"], None),
    "positives weighed": (["--pos-weight"], None),
    "asymmetric loss": ([], asymmetric_loss),
    "label smoothing 0.1": (["--label-smoothing", "0.1"], None),
    "linear probe first": ([], linear_probe_first),
    "linear probe first, 1e-4": (["--lr", "1e-4"], linear_probe_first),
    "embeddings frozen": ([], embeddings_frozen),
    "two layers frozen": (["--freeze", "2"], None),
    "two layers frozen, four epochs": (["--freeze", "2", "--epochs", "4"], None),
    "two layers frozen, 3e-4": (["--freeze", "2", "--lr", "3e-4"], None),
    "three layers frozen": (["--freeze", "3"], None),
    "four layers frozen": (["--freeze", "4"], None),
    "dropout 0.1 before the head": (["--dropout", "0.1"], None),
    "multi-sample dropout": ([], multi_sample_dropout),
    "rates by layer, 0.85": ([], layer_rates),
    "head at ten times the rate": ([], head_rate),
    "first token beside the mean": ([], first_and_mean),
    "maximum beside the mean": ([], mean_and_max),
    "mixture of all layers": ([], all_layers),
    "two-layer head": ([], two_layer_head),
    "top layer afresh": ([], fresh_top_layer),
    "R-Drop": ([], r_drop),
    "adversarial (FGM)": ([], adversarial),
    "transfer": ([], None),
}


def run_one(args, name: str, seed: int, flags: list[str]) -> int:
    """Train one recipe with one seed; of its folder only the tables stay."""
    own, change = RECIPES[name]
    if name == "transfer":
        flags = [*flags, "--model", str(args.folder / "before" / "fold_0")]
    if change:
        change()
    out = args.folder / slug(name, seed)
    code = train.main(["--train", args.csv, "--seed", str(seed), "--out", str(out), *own, *flags])
    if (out / "metrics.json").exists():
        for weights in out.glob("fold_*/*.safetensors"):
            weights.unlink()
    return code


def slug(name: str, seed: int) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") + f"-{seed}"


def table(args) -> None:
    found = {}
    for name in RECIPES:
        paths = [args.folder / slug(name, seed) / "metrics.json" for seed in range(args.seeds)]
        if runs := {i: json.loads(p.read_text()) for i, p in enumerate(paths) if p.exists()}:
            found[name] = runs
    print(
        "\n| recipe | seeds | macro-F1 | deviation | to the defaults | seed 0 [95 % interval] | mean avg precision | minutes |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    base = found.get("defaults", {})
    for name, runs in found.items():
        f1 = {i: r["macro_f1_cross_fitted"] for i, r in runs.items()}
        gaps = [v - base[i]["macro_f1_cross_fitted"] for i, v in f1.items() if i in base]
        v, spread = np.array(list(f1.values())), np.std(list(f1.values()), ddof=1) if len(f1) > 1 else np.nan
        low, high = runs.get(0, {}).get("macro_f1_cross_fitted_ci95", (np.nan, np.nan))
        gap = f"{np.mean(gaps):+.4f}" if gaps and name != "defaults" else ""
        minutes = np.mean([r["seconds"] for r in runs.values()]) / 60
        ap = np.mean([x["average_precision"] for r in runs.values() for x in r["per_label"].values()])
        score = f"{len(v)} | {v.mean():.4f} | {spread:.4f} | {gap} | [{low:.3f}, {high:.3f}]"
        print(f"| {name} | {score} | {ap:.4f} | {minutes:.1f} |")
    for seed in range(args.seeds):
        members = [args.folder / slug(name, seed) / "oof.csv" for name, runs in found.items() if seed in runs]
        if len(members) > 1:
            print(f"mean of the {len(members)} recipes with seed {seed}: {together(args.csv, members):.4f}")


def together(path: str, members: list[Path]) -> float:
    """Cross-fitted macro-F1 of the mean of the members' out-of-fold probabilities (equal seeds: equal folds)."""
    tables = [pd.read_csv(m) for m in members]
    names = list(tables[0].columns[2:])
    y, p = data.read_csv(path, None, names).labels, np.mean([t[names] for t in tables], 0)
    return metrics.scores(y, metrics.cross_fit(y, p, tables[0]["fold"].to_numpy()))["macro_f1"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--transfer", metavar="CSV")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one:
        sys.exit(run_one(args, args.one[0], int(args.one[1]), flags))
    before = args.folder / "before"
    if args.transfer and not (before / "metrics.json").exists():
        train.main(["--train", args.transfer, "--folds", "1", "--epochs", "2", "--out", str(before)])
    for seed in range(args.seeds):
        for name in args.only:
            done = (args.folder / slug(name, seed) / "metrics.json").exists()
            if not done and (name != "transfer" or before.exists()):
                print(f"\n{name}, seed {seed}", flush=True)
                subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--one", name, str(seed)], check=True
                )
                table(args)
    table(args)


if __name__ == "__main__":
    main()
