#include "absl/strings/str_cat.h"
#include "engine/model/families/families.h"

namespace lockstep {

extern const ModelFamily kLlamaFamily;
extern const ModelFamily kQwen2Family;
extern const ModelFamily kQwen3Family;
extern const ModelFamily kQwen3MoeFamily;

namespace {

const ModelFamily* const kFamilies[] = {&kLlamaFamily, &kQwen2Family, &kQwen3Family, &kQwen3MoeFamily};

}  // namespace

std::span<const ModelFamily* const> AllFamilies() { return kFamilies; }

const ModelFamily* FindFamily(std::string_view architecture) {
  for (const ModelFamily* family : kFamilies) {
    if (architecture == family->architecture) return family;
  }
  return nullptr;
}

std::string SupportedArchitectures() {
  std::string list;
  for (const ModelFamily* family : kFamilies) absl::StrAppend(&list, list.empty() ? "" : ", ", family->architecture);
  return list;
}

}  // namespace lockstep
