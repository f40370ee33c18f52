#include "weight_sync/member_identity.h"

#include <unistd.h>

#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace lockstep {
namespace {

constexpr char kAnswerKey[] = "answer";
// First byte of an answer: what follows is the answer, or why there is none.
constexpr char kGood = '+', kRefused = '-';

std::string MemberKey(int rank) { return absl::StrCat("member/", rank); }

std::string Write(const MemberIdentity& member) { return absl::StrCat(member.host, " ", member.bus_id); }

absl::StatusOr<MemberIdentity> Read(const std::string& text, int rank) {
  const size_t space = text.find(' ');
  if (text.size() > 512 || space == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " did not say on which machine and GPU it is"));
  }
  return MemberIdentity{text.substr(0, space), text.substr(space + 1)};
}

absl::StatusOr<std::string> AnswerOfRank0(GroupTable& table, const Meeting& meeting,
                                          const std::function<absl::Status(const std::vector<MemberIdentity>&)>& check,
                                          const std::function<absl::StatusOr<std::string>()>& make_answer) {
  std::vector<MemberIdentity> members = {meeting.self};
  for (int rank = 1; rank < meeting.size; ++rank) {
    const absl::StatusOr<std::string> text = table.Get(MemberKey(rank), meeting.deadline, meeting.cancelled);
    if (absl::IsDeadlineExceeded(text.status())) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", rank, " of ", meeting.size, " has not joined"));
    }
    if (!text.ok()) return text.status();
    absl::StatusOr<MemberIdentity> member = Read(*text, rank);
    if (!member.ok()) return member.status();
    members.push_back(*std::move(member));
  }
  const absl::Status fit = check(members);
  if (!fit.ok()) return fit;
  return make_answer();
}

}  // namespace

std::string ThisHost() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  if (file >> id) return id;
  char name[256] = "";
  (void)gethostname(name, sizeof(name) - 1);
  return name;
}

absl::Status CheckOwnGpus(const std::vector<MemberIdentity>& members) {
  std::map<std::pair<std::string, std::string>, size_t> seen;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    const auto [it, is_new] = seen.try_emplace({members[rank].host, members[rank].bus_id}, rank);
    if (is_new) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("ranks ", it->second, " and ", rank, " share the GPU ", members[rank].bus_id,
                     ", and NCCL needs one for each; give them other GPUs, or set weight_sync.transport to \"ipc\""));
  }
  return absl::OkStatus();
}

absl::Status CheckOneGpu(const std::vector<MemberIdentity>& members) {
  for (size_t rank = 1; rank < members.size(); ++rank) {
    if (members[rank].host != members[0].host) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", rank,
                       " is on another machine, and \"ipc\" works on one GPU only; set weight_sync.transport to "
                       "\"nccl\" or \"gloo\""));
    }
    if (members[rank].bus_id != members[0].bus_id) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", rank, " is on the GPU ", members[rank].bus_id, " and rank 0 on ", members[0].bus_id,
                       ", and \"ipc\" works on one GPU only; set weight_sync.transport to \"nccl\" or \"gloo\""));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Meet(GroupTable& table, const Meeting& meeting,
                                 const std::function<absl::Status(const std::vector<MemberIdentity>&)>& check,
                                 const std::function<absl::StatusOr<std::string>()>& make_answer) {
  if (meeting.size < 1 || meeting.rank < 0 || meeting.rank >= meeting.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", meeting.rank, " is not in a group of ", meeting.size, " members"));
  }
  if (meeting.rank == 0) {
    absl::StatusOr<std::string> answer = AnswerOfRank0(table, meeting, check, make_answer);
    const absl::Status told =
        table.Set(kAnswerKey,
                  answer.ok() ? absl::StrCat(std::string(1, kGood), *answer)
                              : absl::StrCat(std::string(1, kRefused), std::string(answer.status().message())),
                  meeting.deadline);
    return answer.ok() && !told.ok() ? told : std::move(answer);
  }
  const absl::Status said = table.Set(MemberKey(meeting.rank), Write(meeting.self), meeting.deadline);
  if (!said.ok()) return said;
  absl::StatusOr<std::string> answer = table.Get(kAnswerKey, meeting.deadline, meeting.cancelled);
  if (absl::IsDeadlineExceeded(answer.status())) {
    return absl::DeadlineExceededError("rank 0 has not answered; it or another member has not joined");
  }
  if (!answer.ok()) return answer.status();
  if (answer->empty() || (*answer)[0] != kGood) {
    return absl::FailedPreconditionError(answer->empty() ? "rank 0 gave an empty answer"
                                                         : absl::StrCat("refused by rank 0: ", answer->substr(1, 500)));
  }
  return answer->substr(1);
}

}  // namespace lockstep
