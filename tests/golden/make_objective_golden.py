"""Writes learner/testdata/objective_golden.h: losses and gradients of the objectives by PyTorch autograd, from the
formulas of arXiv 2510.26788 with detach() for the stop-gradient.

    python3 tests/golden/make_objective_golden.py > learner/testdata/objective_golden.h
"""

import torch

torch.manual_seed(7)
LENGTHS = [3, 1, 5, 4]
ADVANTAGES = [0.75, -0.25, -1.5, 0.5]
N = sum(LENGTHS)
LOG_PI = (-torch.rand(N, dtype=torch.float64) * 3 - 0.05).float().double()
LOG_MU = (LOG_PI + torch.randn(N, dtype=torch.float64) * 0.4).float().double()
LOG_OLD = (LOG_PI + torch.randn(N, dtype=torch.float64) * 0.3).float().double()
WEIGHTS = torch.tensor([1.0 / (length * len(LENGTHS)) for length in LENGTHS]).float().double()


def sequences(x):
    return torch.split(x, LENGTHS)


def token_is(clip):
    def loss(log_pi):
        total = 0.0
        for pi, mu, a, w in zip(sequences(log_pi), sequences(LOG_MU), ADVANTAGES, WEIGHTS):
            rho = torch.clamp(torch.exp((pi - mu).detach()), max=clip)
            total = total + w * (-(rho * a * pi)).sum()
        return total

    return loss


def sequence_is(clip, mask):
    def loss(log_pi):
        total = 0.0
        for pi, mu, a, w in zip(sequences(log_pi), sequences(LOG_MU), ADVANTAGES, WEIGHTS):
            weight = torch.exp((pi - mu).sum().detach())
            weight = weight * (weight <= clip) if mask else torch.clamp(weight, max=clip)
            total = total + w * (-(weight * a * pi)).sum()
        return total

    return loss


def policy_gradient(log_pi):
    return sum(w * (-a * pi).sum() for pi, a, w in zip(sequences(log_pi), ADVANTAGES, WEIGHTS))


def grpo(low, high):
    def loss(log_pi):
        total = 0.0
        for pi, old, a, w in zip(sequences(log_pi), sequences(LOG_OLD), ADVANTAGES, WEIGHTS):
            ratio = torch.exp(pi - old)
            total = total + w * torch.max(-a * ratio, -a * torch.clamp(ratio, 1 - low, 1 + high)).sum()
        return total

    return loss


INF = float("inf")
CASES = [
    ("pg", 0.0, 0.0, 0.0, policy_gradient),
    ("pg_token_is", INF, 0.0, 0.0, token_is(INF)),
    ("pg_token_tis", 1.1, 0.0, 0.0, token_is(float(torch.tensor(1.1).float()))),
    ("pg_seq_is", INF, 0.0, 0.0, sequence_is(INF, False)),
    ("pg_seq_tis", 1.25, 0.0, 0.0, sequence_is(1.25, False)),
    ("pg_seq_mis", 1.25, 0.0, 0.0, sequence_is(1.25, True)),
    ("grpo", INF, 0.125, 0.25, grpo(0.125, 0.25)),
]


def numbers(values):
    return ", ".join("%.9ef" % v for v in values)


def number(value):
    return "std::numeric_limits<float>::infinity()" if value == INF else "%.9ef" % value


print("// Written by tests/golden/make_objective_golden.py with PyTorch %s. Do not edit." % torch.__version__)
print("// clang-format off")
print("inline const std::vector<int32_t> kGoldenOffsets = {%s};" % ", ".join(
    str(sum(LENGTHS[:i])) for i in range(len(LENGTHS) + 1)))
print("inline const std::vector<float> kGoldenAdvantage = {%s};" % numbers(ADVANTAGES))
print("inline const std::vector<float> kGoldenWeight = {%s};" % numbers(WEIGHTS.tolist()))
print("inline const std::vector<float> kGoldenLogPi = {%s};" % numbers(LOG_PI.tolist()))
print("inline const std::vector<float> kGoldenLogMu = {%s};" % numbers(LOG_MU.tolist()))
print("inline const std::vector<float> kGoldenLogOld = {%s};" % numbers(LOG_OLD.tolist()))
print("struct ObjectiveGolden { const char* name; float is_clip, clip_low, clip_high; double loss; "
      "std::vector<float> gradient; };")
print("inline const std::vector<ObjectiveGolden> kObjectiveGoldens = {")
for name, clip, low, high, function in CASES:
    log_pi = LOG_PI.clone().requires_grad_(True)
    value = function(log_pi)
    value.backward()
    print('    {"%s", %s, %s, %s, %.12e, {%s}},' %
          (name, number(clip), number(low), number(high), value.item(), numbers(log_pi.grad.tolist())))
print("};")
print("// clang-format on")
