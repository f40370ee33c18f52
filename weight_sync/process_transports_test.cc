#include "weight_sync/process_transports.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

TEST(ProcessTransportsTest, GlooIsAlwaysThereAndTheDefault) {
  for (const std::string name : {"", "gloo", "auto"}) {  // "auto": on a CPU
    const auto transports = ProcessTransports(name, 0, /*on_gpu=*/false);
    ASSERT_TRUE(transports.ok()) << transports.status();
    EXPECT_EQ(TransportNames(*transports), "gloo");
  }
}

// On a machine with a GPU they are there; on one without, the reason is one line with the way out.
TEST(ProcessTransportsTest, TheGpusTransportsAreThereOrTheReasonIs) {
  for (const std::string name : {"nccl", "ipc"}) {
    const auto transports = ProcessTransports(name, 0, false);
    if (transports.ok()) {
      EXPECT_EQ(TransportNames(*transports), name == "nccl" ? "gloo, nccl" : "gloo, ipc");
      continue;
    }
    const std::string text(transports.status().message());
    EXPECT_EQ(text.find("weight_sync.transport \"" + name + "\" cannot be used here: no "), 0u) << text;
    EXPECT_NE(text.find("set it to \"gloo\""), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos);
  }
}

TEST(ProcessTransportsTest, AnUnknownNameIsRefusedWithThoseThatAreKnown) {
  EXPECT_NE(ProcessTransports("mpi", 0, false).status().message().find("use one of auto, gloo, nccl, ipc"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace lockstep
