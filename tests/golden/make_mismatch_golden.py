"""Writes learner/testdata/mismatch_golden.h: the mismatch figures of a batch by numpy, in double, each by its
definition (np.corrcoef, np.polyfit, plain means), from float32 log-probs.

    python3 tests/golden/make_mismatch_golden.py > learner/testdata/mismatch_golden.h
"""

import numpy as np

rng = np.random.default_rng(11)
LENGTHS = [7, 1, 12, 30, 0, 18]
N = sum(LENGTHS)
LOG_PI = (-rng.exponential(0.8, N) - 1e-3).astype(np.float32)
LOG_MU = (LOG_PI + rng.normal(0.004, 0.05, N)).astype(np.float32)
LOG_MU[::3] = LOG_PI[::3]
LOG_MU[5] = LOG_PI[5] - 2.5  # an outlier
LOG_MU = np.minimum(LOG_MU, 0).astype(np.float32)
mu, pi = LOG_MU.astype(np.float64), LOG_PI.astype(np.float64)
bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
l = pi - mu
w = np.exp(l)
parts = [(mu[a:b], pi[a:b]) for a, b in zip(bounds, bounds[1:]) if b > a]
L = np.array([(p - m).sum() for m, p in parts])
T = np.array([len(m) for m, _ in parts], dtype=np.float64)
W = np.exp(L)


def ess(x):
    return x.sum() ** 2 / (len(x) * (x * x).sum())


GOLDEN = {
    "kl_k1": (-l).mean(),
    "kl_k2": (l * l).mean() / 2,
    "kl_k3": (w - l - 1).mean(),
    "mean_abs_log_ratio": np.abs(l).mean(),
    "max_abs_log_ratio": np.abs(l).max(),
    "max_probability_difference": (np.exp(mu) - np.exp(pi)).max(),
    "min_probability_difference": (np.exp(mu) - np.exp(pi)).min(),
    "ratio_outside": ((w < 0.99) | (w > 1.01)).mean(),
    "probability_correlation": np.corrcoef(np.exp(mu), np.exp(pi))[0, 1],
    "effective_sample_size_token": ess(w),
    "chi_square_token": (w * w).mean() - 1,
    "rollout_perplexity": np.mean([np.exp(-m.mean()) for m, _ in parts]),
    "training_perplexity": np.mean([np.exp(-p.mean()) for _, p in parts]),
    "perplexity_ratio": np.mean([np.exp(m.mean() - p.mean()) for m, p in parts]),
    "sequence_log_ratio_mean": L.mean(),
    "sequence_log_ratio_min": L.min(),
    "sequence_log_ratio_max": L.max(),
    "sequence_log_ratio_slope": np.polyfit(T / 1000.0, L, 1)[0],
    "effective_sample_size_sequence": ess(W),
    "chi_square_sequence": (W * W).mean() - 1,
}


def numbers(values):
    return ", ".join("%.9ef" % v for v in values)


print("// Written by tests/golden/make_mismatch_golden.py with numpy. Do not edit.")
print("// clang-format off")
print("inline const std::vector<int32_t> kMismatchOffsets = {%s};" % ", ".join(map(str, bounds)))
print("inline const std::vector<float> kMismatchLogMu = {%s};" % numbers(LOG_MU))
print("inline const std::vector<float> kMismatchLogPi = {%s};" % numbers(LOG_PI))
print("struct MismatchGolden { const char* name; double lockstep::MismatchReport::*field; double value; };")
print("inline const std::vector<MismatchGolden> kMismatchGoldens = {")
for name, value in GOLDEN.items():
    print('    {"%s", &lockstep::MismatchReport::%s, %.15e},' % (name, name, value))
print("};")
print("// clang-format on")
