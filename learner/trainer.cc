#include "learner/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"

namespace lockstep {
namespace {

constexpr float kSupervisedTemperature = 1.0f;

void CountRouting(const RoutingTrace& trace, TrainMetrics* metrics) {
  metrics->routing_choices += static_cast<double>(trace.choices);
  metrics->routing_differing += static_cast<double>(trace.differing);
}

class Stopwatch {
 public:
  explicit Stopwatch(double* seconds) : seconds_(seconds), start_(absl::Now()) {}
  ~Stopwatch() { *seconds_ += absl::ToDoubleSeconds(absl::Now() - start_); }

 private:
  double* seconds_;
  absl::Time start_;
};

}  // namespace

struct Trainer::Impl {
  TrainerOptions options;
  Collectives* collectives = nullptr;
  const Objective* objective = nullptr;
  ObjectiveParams params;
  std::unique_ptr<TrainEngine> engine;
  LossScaler scaler;
  int64_t adam_step = 0;
  size_t routing_row_bytes = 0;  // 0: routing is not looked at

  explicit Impl(const LossScaler& loss_scaler) : scaler(loss_scaler) {}

  bool supervised(std::span<const TrainSample> samples) const { return samples.front().log_mu.empty(); }
  int64_t MicroBatchTokens(std::span<const TrainSample> samples) const;
  absl::StatusOr<std::vector<float>> LossWeights(std::span<const TrainSample> samples) const;
  // metrics takes the routing's counts; null for a policy that routes for itself.
  absl::Status FillLogProbs(Policy policy, std::vector<float> TrainSample::*field, std::vector<TrainSample>* samples,
                            double* seconds, TrainMetrics* metrics);
  absl::Status PrepareLogProbs(std::vector<TrainSample>* samples, uint32_t updates, TrainMetrics* metrics);
  absl::Status ForwardBackward(std::span<const TrainSample> samples, std::span<const float> loss_weights,
                               TrainMetrics* metrics);
  void Coefficients(const MicroBatch& batch, bool supervised, std::span<const float> log_pi,
                    std::span<const float> entropy, std::vector<float>* d_log_pi, TrainMetrics* metrics);
  // The micro-batch with the rollout's routing where it is used (never for the reference).
  MicroBatch Build(std::span<const TrainSample> samples, std::span<const float> loss_weights, bool with_routing) const;
  absl::Status Update(std::span<const TrainSample> samples, TrainMetrics* metrics);
  absl::Status ReduceAndStep(TrainMetrics* metrics);
  absl::Status ReduceMetrics(TrainMetrics* metrics);
};

// No more than configured, and no more than shares the tokens among the ranks.
int64_t Trainer::Impl::MicroBatchTokens(std::span<const TrainSample> samples) const {
  int64_t total = 0;
  for (const TrainSample& sample : samples) total += SampleTokens(sample);
  const int64_t ranks = collectives->world_size();
  return std::min<int64_t>(options.learner.micro_batch_tokens(), (total + ranks - 1) / ranks);
}

absl::StatusOr<std::vector<float>> Trainer::Impl::LossWeights(std::span<const TrainSample> samples) const {
  std::vector<int64_t> lengths;
  for (const TrainSample& sample : samples) lengths.push_back(static_cast<int64_t>(sample.response.size()));
  return AggregationWeights(supervised(samples) ? "token_mean" : options.algorithm.aggregation(), lengths,
                            options.max_response_tokens);
}

// The log-prob of every response token under `policy`. Each rank computes its micro-batches and leaves zeros for the
// others; adding zeros keeps the bits.
absl::Status Trainer::Impl::FillLogProbs(Policy policy, std::vector<float> TrainSample::*field,
                                         std::vector<TrainSample>* samples, double* seconds, TrainMetrics* metrics) {
  Stopwatch stopwatch(seconds);
  RoutingTrace trace;
  std::vector<size_t> first;  // of each sample in log_probs
  size_t total = 0;
  for (const TrainSample& sample : *samples) {
    first.push_back(total);
    total += sample.response.size();
  }
  std::vector<float> log_probs(total, 0.0f);
  const auto ranges = PackMicroBatches(*samples, MicroBatchTokens(*samples));
  const std::vector<float> no_weights(samples->size(), 0.0f);
  for (size_t j = collectives->rank(); j < ranges.size(); j += collectives->world_size()) {
    const auto [begin, end] = ranges[j];
    const MicroBatch batch =
        Build(std::span(*samples).subspan(begin, end - begin), no_weights, /*with_routing=*/metrics != nullptr);
    if (batch.packed.targets.empty()) continue;
    RoutingTrace* const traced = batch.packed.routing.empty() ? nullptr : &trace;
    absl::Status status = engine->Forward(policy, batch.packed, options.temperature, log_probs.data() + first[begin],
                                          /*entropy=*/nullptr, traced);
    if (!status.ok()) return status;
    if (traced != nullptr) CountRouting(trace, metrics);
  }
  if (absl::Status status =
          collectives->AllReduceSum(log_probs.data(), static_cast<int64_t>(total), options.collective_timeout);
      !status.ok()) {
    return status;
  }
  for (size_t i = 0; i < samples->size(); ++i) {
    const auto begin = log_probs.begin() + static_cast<int64_t>(first[i]);
    ((*samples)[i].*field).assign(begin, begin + static_cast<int64_t>((*samples)[i].response.size()));
  }
  return absl::OkStatus();
}

// What the objective needs besides the pass that it is computed in.
absl::Status Trainer::Impl::PrepareLogProbs(std::vector<TrainSample>* samples, uint32_t updates,
                                            TrainMetrics* metrics) {
  if (updates > 1 && objective->spec->uses_old && options.algorithm.old_log_prob() != "rollout") {
    absl::Status status =
        FillLogProbs(Policy::kTrained, &TrainSample::log_pi_old, samples, &metrics->old_log_prob_seconds, metrics);
    if (!status.ok()) return status;
  }
  if (options.algorithm.kl_beta() <= 0) return absl::OkStatus();
  LOCKSTEP_CHECK(engine->has_reference(), "CaptureReference comes before the first step with a KL penalty");
  return FillLogProbs(Policy::kReference, &TrainSample::log_ref, samples, &metrics->reference_seconds, nullptr);
}

MicroBatch Trainer::Impl::Build(std::span<const TrainSample> samples, std::span<const float> loss_weights,
                                bool with_routing) const {
  const bool any = with_routing && std::any_of(samples.begin(), samples.end(),
                                               [](const TrainSample& sample) { return !sample.routing.empty(); });
  MicroBatch batch = BuildMicroBatch(samples, loss_weights, any ? routing_row_bytes : 0);
  batch.packed.replay_routing = options.learner.router_replay() == "replay";
  return batch;
}

void Trainer::Impl::Coefficients(const MicroBatch& batch, bool supervised, std::span<const float> log_pi,
                                 std::span<const float> entropy, std::vector<float>* d_log_pi, TrainMetrics* metrics) {
  d_log_pi->assign(log_pi.size(), 0.0f);
  for (float nats : entropy) metrics->entropy_sum += nats;
  if (supervised) {
    for (size_t t = 0; t < log_pi.size(); ++t) {
      (*d_log_pi)[t] = -batch.loss_weight[0];  // 1 / N for every token
      metrics->objective.loss -= double{batch.loss_weight[0]} * log_pi[t];
    }
    metrics->objective.tokens += static_cast<double>(log_pi.size());
    return;
  }
  ObjectiveBatch numbers;
  numbers.offsets = batch.offsets;
  numbers.log_pi = log_pi;
  numbers.log_mu = batch.log_mu;
  numbers.advantage = batch.advantage;
  numbers.loss_weight = batch.loss_weight;
  // One update a step: the policy has not moved yet, so pi_old is this forward's pi.
  numbers.log_pi_old = options.algorithm.old_log_prob() == "rollout" ? std::span<const float>(batch.log_mu)
                       : batch.log_pi_old.empty()                    ? log_pi
                                                                     : std::span<const float>(batch.log_pi_old);
  objective->compute(numbers, params, *d_log_pi, metrics->objective);
  if (!batch.log_ref.empty()) {
    numbers.log_ref = batch.log_ref;
    AddKlPenalty(numbers, options.algorithm.kl_beta(), *d_log_pi, metrics->objective);
  }
  const bool weights_moved = metrics->updates > metrics->skipped;
  if (!batch.log_pi_old.empty()) {
    metrics->mismatch.AddSequences(batch.offsets, batch.log_mu, batch.log_pi_old);
  } else if (!weights_moved) {
    metrics->mismatch.AddSequences(batch.offsets, batch.log_mu, log_pi);
  }
}

absl::Status Trainer::Impl::ForwardBackward(std::span<const TrainSample> samples, std::span<const float> loss_weights,
                                            TrainMetrics* metrics) {
  Stopwatch stopwatch(&metrics->forward_backward_seconds);
  const bool is_supervised = supervised(samples);
  const float temperature = is_supervised ? kSupervisedTemperature : options.temperature;
  const float scale = scaler.scale();
  if (absl::Status status = engine->ZeroGradients(); !status.ok()) return status;
  const auto ranges = PackMicroBatches(samples, MicroBatchTokens(samples));
  std::vector<float> log_pi, entropy, coefficient;
  RoutingTrace trace;
  for (size_t j = collectives->rank(); j < ranges.size(); j += collectives->world_size()) {
    const auto [begin, end] = ranges[j];
    const MicroBatch batch = Build(samples.subspan(begin, end - begin), loss_weights.subspan(begin, end - begin),
                                   /*with_routing=*/!is_supervised);
    if (batch.packed.targets.empty()) continue;
    // Counted over the same tokens as the mismatch.
    const bool counted = batch.log_pi_old.empty() && metrics->updates == metrics->skipped;
    RoutingTrace* const traced = counted && !batch.packed.routing.empty() ? &trace : nullptr;
    log_pi.resize(batch.packed.targets.size());
    entropy.resize(batch.packed.targets.size());
    absl::Status status =
        engine->Forward(Policy::kTrained, batch.packed, temperature, log_pi.data(), entropy.data(), traced);
    if (!status.ok()) return status;
    if (traced != nullptr) CountRouting(trace, metrics);
    Coefficients(batch, is_supervised, log_pi, entropy, &coefficient, metrics);
    metrics->tokens += static_cast<double>(batch.packed.tokens.size());
    // A micro-batch without a gradient (all advantages 0) needs no backward pass.
    if (std::all_of(coefficient.begin(), coefficient.end(), [](float c) { return c == 0.0f; })) continue;
    for (float& c : coefficient) c *= scale;
    status = engine->Backward(batch.packed, temperature, coefficient.data());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Trainer::Impl::ReduceAndStep(TrainMetrics* metrics) {
  const double limit = options.learner.grad_clip();
  bool finite;
  double norm;
  {
    Stopwatch stopwatch(&metrics->reduce_seconds);
    absl::Status status = engine->AllReduceGradients(collectives, options.collective_timeout);
    if (!status.ok()) return status;
    const auto computed = engine->GradientNorm(scaler.scale(), limit);
    if (!computed.ok()) return computed.status();
    norm = *computed;
    auto agreed = collectives->AllAgree(std::isfinite(norm), options.collective_timeout);
    if (!agreed.ok()) return agreed.status();
    finite = *agreed;
  }
  Stopwatch stopwatch(&metrics->optimizer_seconds);
  metrics->grad_norm = norm;
  metrics->loss_scale = scaler.scale();
  ++metrics->updates;
  if (!finite) {
    ++metrics->skipped;
    return scaler.Update(false);
  }
  AdamWParams adam;
  adam.step = ++adam_step;
  const double warmup = options.learner.warmup_steps();
  adam.lr = options.learner.lr() * static_cast<float>(std::min(1.0, warmup > 0 ? adam_step / warmup : 1.0));
  adam.beta1 = options.learner.beta1();
  adam.beta2 = options.learner.beta2();
  adam.eps = options.learner.adam_eps();
  adam.weight_decay = options.learner.weight_decay();
  const double clip = limit > 0 && norm > limit ? limit / (norm + 1e-6) : 1.0;  // as torch.nn.utils.clip_grad_norm_
  adam.grad_multiplier = static_cast<float>(clip / scaler.scale());
  if (absl::Status status = engine->Update(adam); !status.ok()) return status;
  return scaler.Update(true);
}

absl::Status Trainer::Impl::Update(std::span<const TrainSample> samples, TrainMetrics* metrics) {
  auto loss_weights = LossWeights(samples);
  if (!loss_weights.ok()) return loss_weights.status();
  if (absl::Status status = ForwardBackward(samples, *loss_weights, metrics); !status.ok()) return status;
  return ReduceAndStep(metrics);
}

// Sums and maxima over the ranks; times are rank 0's.
absl::Status Trainer::Impl::ReduceMetrics(TrainMetrics* metrics) {
  std::vector<double*> fields = metrics->objective.Fields();
  for (double* field : metrics->mismatch.SumFields()) fields.push_back(field);
  fields.push_back(&metrics->entropy_sum);
  fields.push_back(&metrics->tokens);
  fields.push_back(&metrics->routing_choices);
  fields.push_back(&metrics->routing_differing);
  std::vector<double> sums, maxima;
  for (const double* field : fields) sums.push_back(*field);
  absl::Status status =
      collectives->AllReduceSum(sums.data(), static_cast<int64_t>(sums.size()), options.collective_timeout);
  if (!status.ok()) return status;
  for (size_t i = 0; i < sums.size(); ++i) *fields[i] = sums[i];
  const std::vector<double*> extrema = metrics->mismatch.MaxFields();
  for (const double* field : extrema) maxima.push_back(*field);
  status = collectives->AllReduceMax(maxima.data(), static_cast<int64_t>(maxima.size()), options.collective_timeout);
  for (size_t i = 0; i < maxima.size(); ++i) *extrema[i] = maxima[i];
  return status;
}

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::~Trainer() = default;

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const TrainerOptions& options, Collectives* collectives,
                                                         const TrainEngineFactory& make_engine) {
  if (absl::Status status = options.config.Validate(); !status.ok()) return status;
  if (options.learner.micro_batch_tokens() == 0) {
    return absl::InvalidArgumentError("learner.micro_batch_tokens is 0; must be at least 1");
  }
  auto scaler = LossScaler::Create(options.learner.loss_scale(), options.dtype);
  if (!scaler.ok()) return scaler.status();
  auto objective = FindObjective(options.algorithm.name());
  if (!objective.ok()) return objective.status();
  auto impl = std::make_unique<Impl>(*scaler);
  impl->options = options;
  ResolveAlgorithm(&impl->options.algorithm);
  auto routing = RoutingRowBytes(options.learner.router_replay(), options.config);
  if (!routing.ok()) return routing.status();
  impl->routing_row_bytes = *routing;
  impl->collectives = collectives;
  impl->objective = *objective;
  impl->params = ObjectiveParams::From(impl->options.algorithm);
  TrainEngineOptions engine_options;
  engine_options.config = options.config;
  engine_options.dtype = options.dtype;
  engine_options.numerics = options.numerics;
  engine_options.threads = std::max<int>(1, static_cast<int>(options.learner.threads()));
  engine_options.recompute = options.learner.activation_recompute();
  engine_options.lora = options.lora;
  auto engine = make_engine(engine_options);
  if (!engine.ok()) return engine.status();
  impl->engine = *std::move(engine);
  return std::unique_ptr<Trainer>(new Trainer(std::move(impl)));
}

absl::StatusOr<TrainMetrics> Trainer::Step(std::vector<TrainSample> samples, uint32_t updates) {
  TrainMetrics metrics;
  LOCKSTEP_CHECK(!samples.empty() && updates > 0, "a step needs samples and at least one update");
  for (const TrainSample& sample : samples) {
    LOCKSTEP_CHECK(!sample.prompt.empty() && sample.log_mu.size() == sample.response.size(),
                   "a sample has a prompt, and one log mu for each response token");
  }
  updates = std::min<uint32_t>(updates, static_cast<uint32_t>(samples.size()));
  if (absl::Status status = impl_->PrepareLogProbs(&samples, updates, &metrics); !status.ok()) return status;
  for (uint32_t update = 0; update < updates; ++update) {
    const size_t begin = samples.size() * update / updates;
    const size_t end = samples.size() * (update + 1) / updates;
    absl::Status status = impl_->Update(std::span(samples).subspan(begin, end - begin), &metrics);
    if (!status.ok()) return status;
  }
  if (absl::Status status = impl_->ReduceMetrics(&metrics); !status.ok()) return status;
  return metrics;
}

absl::StatusOr<TrainMetrics> Trainer::SupervisedStep(const std::vector<TrainSample>& samples) {
  TrainMetrics metrics;
  LOCKSTEP_CHECK(!samples.empty(), "a step needs samples");
  for (const TrainSample& sample : samples) {
    LOCKSTEP_CHECK(!sample.prompt.empty() && sample.log_mu.empty(), "a supervised sample has a prompt and no log mu");
  }
  if (absl::Status status = impl_->Update(samples, &metrics); !status.ok()) return status;
  if (absl::Status status = impl_->ReduceMetrics(&metrics); !status.ok()) return status;
  return metrics;
}

float* Trainer::arena() { return impl_->engine->masters(); }
const float* Trainer::arena() const { return impl_->engine->masters(); }
int64_t Trainer::arena_size() const { return impl_->engine->size(); }
const LowRankLayout* Trainer::lora() const {
  const LoraBase* lora = impl_->engine->lora();
  return lora == nullptr ? nullptr : &lora->layout();
}
ParamSource Trainer::params() const { return impl_->engine->params(); }
const DeviceParams* Trainer::device_params() const { return impl_->engine->device_params(); }
absl::Status Trainer::Fetch(TrainArrays what) { return impl_->engine->Fetch(what); }
absl::Status Trainer::RefreshWeights() { return impl_->engine->Store(TrainArrays::kMasters); }
const float* Trainer::gradients() const { return impl_->engine->gradients(); }
const LossScaler& Trainer::loss_scaler() const { return impl_->scaler; }
int64_t Trainer::optimizer_steps() const { return impl_->adam_step; }

bool Trainer::needs_reference() const { return impl_->options.algorithm.kl_beta() > 0; }
absl::Status Trainer::CaptureReference() {
  LOCKSTEP_CHECK(needs_reference(), "a reference without a KL penalty only takes memory");
  return impl_->engine->CaptureReference();
}

std::vector<StateArray> Trainer::StateArrays() {
  TrainEngine& engine = *impl_->engine;
  const bool adapters = engine.lora() != nullptr;
  return {{adapters ? "lora" : "master", engine.masters(), engine.size()},
          {adapters ? "lora_adam_m" : "adam_m", engine.moment1(), engine.size()},
          {adapters ? "lora_adam_v" : "adam_v", engine.moment2(), engine.size()}};
}

void Trainer::SaveState(StateValues* values) const {
  const LossScalerState& scaler = impl_->scaler.state();
  (*values)["adam_step"] = absl::StrCat(impl_->adam_step);
  (*values)["loss_scale"] = absl::StrFormat("%a", scaler.scale);  // hexadecimal: exact
  (*values)["loss_scale_growth_tracker"] = absl::StrCat(scaler.growth_tracker);
  (*values)["loss_scale_skips_at_floor"] = absl::StrCat(scaler.consecutive_skips_at_floor);
  (*values)["skipped_steps_total"] = absl::StrCat(scaler.skipped_steps_total);
  if (const LoraBase* lora = impl_->engine->lora()) (*values)["lora"] = lora->fingerprint();
}

absl::Status Trainer::RestoreState(const StateValues& values) {
  LossScalerState scaler;
  const auto text = [&values](const std::string& key) {
    const auto it = values.find(key);
    return it == values.end() ? std::string() : it->second;
  };
  const std::string scale = text("loss_scale");
  char* scale_end = nullptr;
  scaler.scale = std::strtof(scale.c_str(), &scale_end);
  if (!absl::SimpleAtoi(text("adam_step"), &impl_->adam_step) || scale.empty() || *scale_end != '\0' ||
      !absl::SimpleAtoi(text("loss_scale_growth_tracker"), &scaler.growth_tracker) ||
      !absl::SimpleAtoi(text("loss_scale_skips_at_floor"), &scaler.consecutive_skips_at_floor) ||
      !absl::SimpleAtoi(text("skipped_steps_total"), &scaler.skipped_steps_total)) {
    return absl::DataLossError("the checkpoint's trainer values are missing or malformed (adam_step, loss_scale, ...)");
  }
  const LoraBase* lora = impl_->engine->lora();
  const std::string fingerprint = lora == nullptr ? "" : lora->fingerprint();
  if (text("lora") != fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat("the state is of LoRA ", text("lora"), ", this process has ",
                                                      fingerprint, "; use the same lora section and model.path"));
  }
  impl_->scaler.Restore(scaler);
  return impl_->engine->Store(TrainArrays::kState);
}

absl::Status Trainer::BroadcastState() {
  const absl::Duration timeout = impl_->options.collective_timeout;
  if (absl::Status status = Fetch(TrainArrays::kState); !status.ok()) return status;
  for (const StateArray& array : StateArrays()) {
    if (absl::Status status = impl_->collectives->Broadcast(array.data, array.size, timeout); !status.ok()) {
      return status;
    }
  }
  if (needs_reference()) {
    if (absl::Status status = impl_->engine->BroadcastReference(impl_->collectives, timeout); !status.ok())
      return status;
  }
  StateValues values;
  SaveState(&values);
  std::string text;
  for (const auto& [key, value] : values) absl::StrAppend(&text, key, "=", value, "\n");
  if (absl::Status status = impl_->collectives->Broadcast(&text, timeout); !status.ok()) return status;
  values.clear();
  for (size_t begin = 0; begin < text.size();) {
    const size_t equals = text.find('=', begin), end = text.find('\n', begin);
    values[text.substr(begin, equals - begin)] = text.substr(equals + 1, end - equals - 1);
    begin = end + 1;
  }
  return RestoreState(values);
}

}  // namespace lockstep
