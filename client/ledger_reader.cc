#include "client/ledger_reader.h"

#include <sqlite3.h>

#include <cctype>
#include <filesystem>
#include <functional>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

// The learner's transactions take milliseconds.
constexpr int kBusyTimeoutMs = 5000;

using Database = std::unique_ptr<sqlite3, int (*)(sqlite3*)>;
using Statement = std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)>;

std::string Uri(const std::string& path, bool immutable) {
  std::string uri = "file:";
  for (const char c : path) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '/' || c == '.' || c == '-' || c == '_') {
      uri += c;
    } else {
      absl::StrAppendFormat(&uri, "%%%02x", static_cast<unsigned char>(c));
    }
  }
  return uri + (immutable ? "?mode=ro&immutable=1" : "?mode=ro");
}

absl::Status Error(sqlite3* database, const std::string& path) {
  const int code = sqlite3_errcode(database);
  const std::string message = absl::StrCat(path, " cannot be read as the ledger of a run: ", sqlite3_errmsg(database));
  return code == SQLITE_BUSY || code == SQLITE_CANTOPEN ? absl::UnavailableError(message)
                                                        : absl::DataLossError(message);
}

std::string Text(sqlite3_stmt* row, int column) {
  const void* bytes = sqlite3_column_blob(row, column);
  return bytes == nullptr ? "" : std::string(static_cast<const char*>(bytes), sqlite3_column_bytes(row, column));
}

absl::Status ForEachRow(sqlite3* database, const std::string& path, const char* sql,
                        const std::function<void(sqlite3_stmt*)>& take) {
  sqlite3_stmt* prepared = nullptr;
  if (sqlite3_prepare_v2(database, sql, -1, &prepared, nullptr) != SQLITE_OK) return Error(database, path);
  const Statement statement(prepared, sqlite3_finalize);
  int result = 0;
  while ((result = sqlite3_step(prepared)) == SQLITE_ROW) take(prepared);
  return result == SQLITE_DONE ? absl::OkStatus() : Error(database, path);
}

}  // namespace

absl::StatusOr<LedgerContents> ReadLedger(const std::string& path) {
  // Without a write-ahead log nobody writes, and the file itself is everything: it is read as it is, also from a medium
  // that cannot be written.
  std::error_code error;
  const bool in_use = std::filesystem::exists(path + "-wal", error);
  sqlite3* opened = nullptr;
  const int result =
      sqlite3_open_v2(Uri(path, !in_use).c_str(), &opened, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, nullptr);
  const Database database(opened, sqlite3_close);
  if (result != SQLITE_OK) return Error(opened, path);
  sqlite3_busy_timeout(opened, kBusyTimeoutMs);
  LedgerContents contents;
  bool evaluations = false;
  absl::Status status = ForEachRow(opened, path, "BEGIN", [](sqlite3_stmt*) {});
  const auto read = [&](const char* sql, const std::function<void(sqlite3_stmt*)>& take) {
    if (status.ok()) status = ForEachRow(opened, path, sql, take);
  };
  read("SELECT epoch, started_at FROM epochs ORDER BY epoch",
       [&](sqlite3_stmt* row) { contents.epochs[static_cast<uint64_t>(sqlite3_column_int64(row, 0))] = Text(row, 1); });
  read("SELECT step, epoch, summary FROM steps ORDER BY step", [&](sqlite3_stmt* row) {
    LedgerStep& step = contents.steps.emplace_back();
    step.step = static_cast<uint64_t>(sqlite3_column_int64(row, 0));
    step.epoch = static_cast<uint64_t>(sqlite3_column_int64(row, 1));
    step.summary = Text(row, 2);
  });
  // Ledgers of older versions have no such table.
  read("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'evaluations'",
       [&](sqlite3_stmt*) { evaluations = true; });
  if (evaluations) {
    read("SELECT summary FROM evaluations ORDER BY step",
         [&](sqlite3_stmt* row) { contents.evaluations.push_back(Text(row, 0)); });
  }
  if (!status.ok()) return status;
  return contents;
}

}  // namespace lockstep
