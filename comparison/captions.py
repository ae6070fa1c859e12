"""The notes below the tables that plots.py prints."""

COMPARISON = """\
- Mean over seeds ± half the width of its 95 % confidence interval (Student's t). A single seed has no interval over
  seeds. No more digits than the interval supports are shown; without one, three. comparison.csv has all digits.
- In brackets: the change against DDP on the same number of devices (the row marked baseline). For each seed that both
  have the logarithm of value / baseline's; its mean and 95 % interval (Student's t) in percent, ± half the width of
  that interval. None without such a row or a common seed, or for values that are not positive. Speedup is paired too.
- Several runs of one seed count as one, with their mean: without a second seed there is no interval over seeds.
- The mark * on a change: statistically significant, and large enough to matter. By Benjamini and Hochberg's test of all
  changes of a table (a metric counts in the first table that has it) at most 5 % of the marked ones are chance; where
  nothing differs, one table in twenty has a mark. It must also be at least 1 %, or 0.1 % of a loss or a score, and
  beyond what reruns of one seed differ by, where there are any. So an interval may exclude zero without a mark.
- Tables with different workloads: flags, data, model, tokenizer or settings of arithmetic differ. Each run's run.json
  has its flags, digests and environment.
- Tables with different code, torch, transformers or deepspeed: the rows of a table ran the same workload/ and
  measurement/ (`source_digest`) with the same versions. plots.py --mix_versions puts them into one table.
- — : could not be measured, see run.json, or nothing to compare with. Further tables leave out rows that have
  nothing in them.
- At equal global batch, statistical efficiency is the same for every strategy up to noise: goodput ranks rows as
  throughput does.
- Time to target: over the runs that reached it; compared only where all did, and only among equal targets."""

INTERVAL = """\
- Noise scale, statistical efficiency and goodput of a single seed: in brackets "low to high", the 95 % interval over
  the run's sampled steps. Throughput counts as known. ∞ : the sampled steps do not bound the noise scale from above;
  one end of statistical efficiency is then its limit, 1. Rows at equal global batch sample the same steps, so their
  intervals move together: goodput differs between them as throughput does."""

FEW_STEPS = """\
- ‡ : rests on too few steps. A run of this row sampled the gradient noise in fewer than 20 steps, which give no
  interval."""

UNRECORDED_CODE = """\
- Code of a commit, or unrecorded: runs from before `source_digest` was recorded. Their commit stands in for it; where
  they have uncommitted changes or no commit, nothing shows that they ran the same code."""

DIRTY = """\
- † : a run of this row started from a working tree with uncommitted changes, so its commit does not give its code."""

TUNER = """\
A line per search space of DeepSpeed's autotuner, and `global` for all: the number of short trials there, and the best
of them. The tuner's throughput counts, over a few steps, only the seconds inside forward, backward and step: it ranks
trials and is not the throughput of a training, which the tables above have."""

SCALING = """\
- Scaling: speedup of epochs T_1 / T_N, the average seconds of an epoch on one device over those on N, paired by seed;
  parallel efficiency is that / N. T_1 is that of the same strategy (of the same schedule and micro-batch size if
  there is one) where it has a row on one device, else DDP's. Tables of throughput say to which of the two they relate
  it.
- Strong scaling keeps the global batch equal, and with it what the model learns from: as many optimizer steps, each
  on fewer samples per device.
- Weak scaling keeps the batch per device equal. The global batch grows with the devices, so its rows train
  differently: fewer and larger optimizer steps per epoch, and another loss and accuracy after as many epochs. Only
  throughput and the time of an epoch compare; data, model, learning rate and the rest of an epoch are the same.
- Tables with a row per number of devices hold the strategies that ran on several."""

PUBLISHED = """\
The tables below show published figures (results/published/, with their sources) beside ours, under the names
that their authors gave them. Under the same name they measure something else, or the same on another job, so no
change against them is stated. docs/notes/published_results.md explains what each of them measures."""
