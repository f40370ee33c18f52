#include "learner/step_message.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace lockstep {
namespace {

template <typename T>
void Put(std::string* bytes, const T& value) {
  static_assert(sizeof(T) == 4);
  bytes->append(reinterpret_cast<const char*>(&value), 4);
}

template <typename T>
void PutArray(std::string* bytes, const std::vector<T>& values) {
  static_assert(sizeof(T) == 4);
  Put(bytes, static_cast<uint32_t>(values.size()));
  bytes->append(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

void PutBytes(std::string* bytes, const std::string& value) {
  Put(bytes, static_cast<uint32_t>(value.size()));
  bytes->append(value);
  bytes->resize((bytes->size() + 3) / 4 * 4, '\0');
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  bool Get(T* value) {
    static_assert(sizeof(T) == 4);
    if (bytes_.size() < 4) return false;
    std::memcpy(value, bytes_.data(), 4);
    bytes_.remove_prefix(4);
    return true;
  }
  template <typename T>
  bool GetArray(std::vector<T>* values) {
    static_assert(sizeof(T) == 4);
    uint32_t n;
    if (!Get(&n) || bytes_.size() / 4 < n) return false;
    values->resize(n);
    if (n > 0) std::memcpy(values->data(), bytes_.data(), size_t{n} * 4);
    bytes_.remove_prefix(size_t{n} * 4);
    return true;
  }
  bool GetBytes(std::string* value) {
    uint32_t n;
    if (!Get(&n)) return false;
    const size_t padded = (size_t{n} + 3) / 4 * 4;
    if (bytes_.size() < padded) return false;
    *value = bytes_.substr(0, n);
    bytes_.remove_prefix(padded);
    return true;
  }
  size_t left() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
};

}  // namespace

std::string EncodeStepMessage(const StepMessage& message) {
  std::string bytes;
  Put(&bytes, static_cast<uint32_t>(message.kind));
  Put(&bytes, message.updates);
  Put(&bytes, static_cast<uint32_t>(message.samples.size()));
  for (const TrainSample& sample : message.samples) {
    PutArray(&bytes, sample.prompt);
    PutArray(&bytes, sample.response);
    PutArray(&bytes, sample.log_mu);
    Put(&bytes, sample.advantage);
    PutBytes(&bytes, sample.routing);
  }
  return bytes;
}

absl::StatusOr<StepMessage> DecodeStepMessage(std::string_view bytes) {
  constexpr size_t kMinSampleBytes = 20;
  Reader reader(bytes);
  StepMessage message;
  uint32_t kind, samples;
  const bool head = reader.Get(&kind) && reader.Get(&message.updates) && reader.Get(&samples);
  if (!head || kind > static_cast<uint32_t>(StepMessage::Kind::kEnd) || samples > reader.left() / kMinSampleBytes) {
    return absl::DataLossError(absl::StrCat("a step message of ", bytes.size(), " bytes is malformed"));
  }
  message.kind = static_cast<StepMessage::Kind>(kind);
  message.samples.resize(samples);
  for (TrainSample& sample : message.samples) {
    if (!reader.GetArray(&sample.prompt) || !reader.GetArray(&sample.response) || !reader.GetArray(&sample.log_mu) ||
        !reader.Get(&sample.advantage) || !reader.GetBytes(&sample.routing)) {
      return absl::DataLossError(absl::StrCat("a step message of ", bytes.size(), " bytes ends within a sample"));
    }
  }
  if (reader.left() != 0) {
    return absl::DataLossError(absl::StrCat("a step message has ", reader.left(), " bytes too many"));
  }
  return message;
}

absl::Status FollowRank0(Trainer& trainer, Collectives& collectives) {
  if (absl::Status status = trainer.BroadcastState(); !status.ok()) return status;
  while (true) {
    std::string bytes;
    if (absl::Status status = collectives.Broadcast(&bytes, kStepMessageTimeout); !status.ok()) return status;
    auto message = DecodeStepMessage(bytes);
    if (!message.ok()) return message.status();
    switch (message->kind) {
      case StepMessage::Kind::kWait:
        break;
      case StepMessage::Kind::kTrain:
        if (auto done = trainer.Step(std::move(message->samples), message->updates); !done.ok()) return done.status();
        break;
      case StepMessage::Kind::kSupervised:
        if (auto done = trainer.SupervisedStep(message->samples); !done.ok()) return done.status();
        break;
      case StepMessage::Kind::kEnd:
        return absl::OkStatus();
    }
  }
}

absl::Status RankLeader::Send(const StepMessage& message) {
  last_ = absl::Now();
  if (collectives_->world_size() == 1) return absl::OkStatus();
  std::string bytes = EncodeStepMessage(message);
  return collectives_->Broadcast(&bytes, kStepMessageTimeout);
}

absl::Status RankLeader::Heartbeat() {
  if (collectives_->world_size() == 1 || absl::Now() - last_ < kHeartbeatInterval) return absl::OkStatus();
  return Send(StepMessage());
}

}  // namespace lockstep
