// The few lines between SQLite's C interface and Status: statements that bind in order and release themselves.
#ifndef LOCKSTEP_LEARNER_SQLITE_H_
#define LOCKSTEP_LEARNER_SQLITE_H_

#include <sqlite3.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace lockstep {

inline absl::Status SqliteError(sqlite3* database, std::string_view what) {
  const int code = sqlite3_errcode(database);
  const std::string message = absl::StrCat("ledger: ", std::string(what), ": ", sqlite3_errmsg(database));
  if (code == SQLITE_FULL) return absl::ResourceExhaustedError(message);
  if (code == SQLITE_BUSY || code == SQLITE_LOCKED) return absl::UnavailableError(message);
  if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) return absl::DataLossError(message);
  return absl::InternalError(message);
}

class SqliteStatement {
 public:
  SqliteStatement(sqlite3* database, std::string_view sql) : database_(database), sql_(sql) {
    sqlite3_prepare_v2(database, sql_.c_str(), -1, &statement_, nullptr);
  }
  ~SqliteStatement() { sqlite3_finalize(statement_); }
  SqliteStatement(const SqliteStatement&) = delete;
  SqliteStatement& operator=(const SqliteStatement&) = delete;

  SqliteStatement& Bind(uint64_t value) {
    sqlite3_bind_int64(statement_, ++bound_, static_cast<int64_t>(value));
    return *this;
  }
  SqliteStatement& Bind(double value) {
    sqlite3_bind_double(statement_, ++bound_, value);
    return *this;
  }
  SqliteStatement& Bind(const std::string& text) {
    sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    return *this;
  }
  SqliteStatement& BindBlob(const std::string& bytes) {
    sqlite3_bind_blob64(statement_, ++bound_, bytes.data(), bytes.size(), SQLITE_TRANSIENT);
    return *this;
  }
  SqliteStatement& BindNull() {
    sqlite3_bind_null(statement_, ++bound_);
    return *this;
  }

  // True when there is a row to read.
  bool Step() {
    result_ = statement_ == nullptr ? SQLITE_ERROR : sqlite3_step(statement_);
    return result_ == SQLITE_ROW;
  }
  // After the last Step.
  absl::Status status() const {
    return result_ == SQLITE_ROW || result_ == SQLITE_DONE ? absl::OkStatus() : SqliteError(database_, sql_);
  }
  uint64_t Int(int column) const { return static_cast<uint64_t>(sqlite3_column_int64(statement_, column)); }
  double Real(int column) const { return sqlite3_column_double(statement_, column); }
  std::string Bytes(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    return data == nullptr ? std::string()
                           : std::string(static_cast<const char*>(data), sqlite3_column_bytes(statement_, column));
  }

 private:
  sqlite3* database_;
  std::string sql_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
  int result_ = SQLITE_OK;
};

inline absl::Status SqliteExecute(sqlite3* database, std::string_view sql) {
  if (sqlite3_exec(database, std::string(sql).c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) return absl::OkStatus();
  return SqliteError(database, sql.substr(0, 60));
}

// Rolls back unless committed. IMMEDIATE: the write lock is taken at once, so what is read in it stays true.
class SqliteTransaction {
 public:
  explicit SqliteTransaction(sqlite3* database)
      : database_(database), status_(SqliteExecute(database, "BEGIN IMMEDIATE")) {}
  ~SqliteTransaction() {
    if (status_.ok() && !committed_) (void)SqliteExecute(database_, "ROLLBACK");
  }
  const absl::Status& status() const { return status_; }
  absl::Status Commit() {
    absl::Status status = SqliteExecute(database_, "COMMIT");
    committed_ = status.ok();
    return status;
  }

 private:
  sqlite3* database_;
  absl::Status status_;
  bool committed_ = false;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_SQLITE_H_
