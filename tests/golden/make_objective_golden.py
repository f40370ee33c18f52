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
LOG_REF = (LOG_PI + torch.randn(N, dtype=torch.float64) * 0.5).float().double()
LOG_REF[2] += 60.0  # beyond the clamp of the KL penalty
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


def geometric_mask(low, high, weighted):
    def loss(log_pi):
        total = 0.0
        for pi, mu, a, w in zip(sequences(log_pi), sequences(LOG_MU), ADVANTAGES, WEIGHTS):
            ratio = (pi - mu).detach()
            mean = torch.exp(ratio.mean())
            keep = ((mean >= low) & (mean <= high)).double()
            weight = keep * (torch.exp(ratio.sum()) if weighted else 1.0)
            total = total + w * (-(weight * a * pi)).sum()
        return total

    return loss


def clipped(low, high, correction=None):
    """PPO's surrogate; correction(old, mu) is the detached factor of a sequence's tokens."""

    def loss(log_pi):
        total = 0.0
        parts = zip(sequences(log_pi), sequences(LOG_OLD), sequences(LOG_MU), ADVANTAGES, WEIGHTS)
        for pi, old, mu, a, w in parts:
            ratio = torch.exp(pi - old)
            token = torch.max(-a * ratio, -a * torch.clamp(ratio, 1 - low, 1 + high))
            factor = 1.0 if correction is None else correction(old, mu).detach()
            total = total + w * (factor * token).sum()
        return total

    return loss


def token_truncation(cap):
    return lambda old, mu: torch.clamp(torch.exp(old - mu), max=cap)


def sequence_truncation(cap):
    return lambda old, mu: torch.clamp(torch.exp((old - mu).sum()), max=cap)


def sequence_mask(cap):
    def factor(old, mu):
        weight = torch.exp((old - mu).sum())
        return weight * (weight <= cap)

    return factor


def two_sided_mask(low, high):
    def factor(old, mu):
        k = torch.exp(old - mu)
        return k * ((k >= low) & (k <= high))

    return factor


def gspo(low, high):
    def loss(log_pi):
        total = 0.0
        for pi, old, a, w in zip(sequences(log_pi), sequences(LOG_OLD), ADVANTAGES, WEIGHTS):
            s = torch.exp((pi - old).mean()).detach() * torch.exp(pi - pi.detach())
            total = total + w * torch.max(-a * s, -a * torch.clamp(s, 1 - low, 1 + high)).sum()
        return total

    return loss


def cispo(low, high):
    def loss(log_pi):
        total = 0.0
        for pi, old, a, w in zip(sequences(log_pi), sequences(LOG_OLD), ADVANTAGES, WEIGHTS):
            ratio = torch.clamp(torch.exp(pi - old).detach(), 1 - low, 1 + high)
            total = total + w * (-(ratio * a * pi)).sum()
        return total

    return loss


def kl_penalty(beta):
    def loss(log_pi):
        total = 0.0
        for pi, ref, w in zip(sequences(log_pi), sequences(LOG_REF), WEIGHTS):
            ratio = torch.clamp(ref - pi, -40.0, 40.0)
            total = total + w * (beta * (torch.exp(ratio) - ratio - 1.0)).sum()
        return total

    return loss


INF = float("inf")
T11 = float(torch.tensor(1.1).float())
T09 = float(torch.tensor(0.9).float())
# name, is_clip, clip_low, clip_high, is_low, loss
CASES = [
    ("pg", 0.0, 0.0, 0.0, 0.0, policy_gradient),
    ("reinforce", 0.0, 0.0, 0.0, 0.0, policy_gradient),
    ("pg_token_is", INF, 0.0, 0.0, 0.0, token_is(INF)),
    ("pg_token_tis", T11, 0.0, 0.0, 0.0, token_is(T11)),
    ("pg_seq_is", INF, 0.0, 0.0, 0.0, sequence_is(INF, False)),
    ("pg_seq_tis", 1.0, 0.0, 0.0, 0.0, sequence_is(1.0, False)),
    ("pg_seq_mis", 1.0, 0.0, 0.0, 0.0, sequence_is(1.0, True)),
    ("pg_geo_rs", 1.03125, 0.0, 0.0, T09, geometric_mask(T09, 1.03125, False)),
    ("pg_geo_mis", 1.03125, 0.0, 0.0, T09, geometric_mask(T09, 1.03125, True)),
    ("grpo", INF, 0.125, 0.25, 0.0, clipped(0.125, 0.25)),
    ("dr_grpo", INF, 0.125, 0.125, 0.0, clipped(0.125, 0.125)),
    ("dapo", INF, 0.125, 0.5, 0.0, clipped(0.125, 0.5)),
    ("grpo_token_tis", T11, 0.125, 0.25, 0.0, clipped(0.125, 0.25, token_truncation(T11))),
    ("grpo_seq_tis", 1.25, 0.125, 0.25, 0.0, clipped(0.125, 0.25, sequence_truncation(1.25))),
    ("grpo_seq_mis", 1.25, 0.125, 0.25, 0.0, clipped(0.125, 0.25, sequence_mask(1.25))),
    ("decoupled_ppo", INF, 0.125, 0.25, 0.0, clipped(0.125, 0.25, token_truncation(INF))),
    ("icepop", 1.25, 0.125, 0.25, T09, clipped(0.125, 0.25, two_sided_mask(T09, 1.25))),
    ("gspo", INF, 0.0625, 0.125, 0.0, gspo(0.0625, 0.125)),
    ("cispo", INF, 0.25, 0.25, 0.0, cispo(0.25, 0.25)),
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
print("inline const std::vector<float> kGoldenLogRef = {%s};" % numbers(LOG_REF.tolist()))
print("struct ObjectiveGolden { const char* name; float is_clip, clip_low, clip_high, is_low; double loss; "
      "std::vector<float> gradient; };")
print("inline const std::vector<ObjectiveGolden> kObjectiveGoldens = {")


def golden(function):
    log_pi = LOG_PI.clone().requires_grad_(True)
    value = function(log_pi)
    value.backward()
    return value.item(), log_pi.grad.tolist()


for name, clip, low, high, is_low, function in CASES:
    value, gradient = golden(function)
    if name in ("pg_geo_rs", "pg_geo_mis", "pg_seq_mis", "grpo_seq_mis", "icepop"):
        assert any(g == 0 for g in gradient) and any(g != 0 for g in gradient), name + ": the mask must act, not always"
    print('    {"%s", %s, %s, %s, %s, %.12e, {%s}},' %
          (name, number(clip), number(low), number(high), number(is_low), value, numbers(gradient)))
print("};")
KL_BETA = 0.25
value, gradient = golden(kl_penalty(KL_BETA))
print("inline constexpr float kGoldenKlBeta = %s;" % number(KL_BETA))
print("inline constexpr double kGoldenKlLoss = %.12e;" % value)
print("inline const std::vector<float> kGoldenKlGradient = {%s};" % numbers(gradient))
print("// clang-format on")
