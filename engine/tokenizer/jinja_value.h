// Values of the chat-template language (a subset of Jinja2) with Python's behaviour, and the budget that bounds what a
// template may cost. Strings are valid UTF-8 and are indexed by code point. Lists and dictionaries never change once
// made, so that values cannot contain themselves; namespaces and loops belong to the interpreter.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_JINJA_VALUE_H_
#define LOCKSTEP_ENGINE_TOKENIZER_JINJA_VALUE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lockstep::jinja {

// What one rendering may cost. Once it is exceeded, or anything fails, the first message stays and all work stops:
// every function below then returns at once with an undefined or empty value.
class Budget {
 public:
  Budget(int64_t steps, int64_t bytes) : steps_(steps), bytes_(bytes) {}
  bool Spend(int64_t steps = 1) {
    if ((steps_ -= steps) < 0) Fail("runs longer than its limit of steps");
    return !failed_;
  }
  // Steps for reading `bytes`, and for a search in them for `part` bytes, which may look at all pairs.
  bool SpendBytes(size_t bytes, size_t part = 0) {
    return Spend(1 + static_cast<int64_t>(bytes / 64) * static_cast<int64_t>(1 + part / 64));
  }
  // Bytes of values made, in total.
  bool Charge(size_t bytes) {
    if (bytes > static_cast<size_t>(INT64_MAX) || (bytes_ -= static_cast<int64_t>(bytes)) < 0) {
      bytes_ = -1;
      Fail("makes more text than its limit");
    }
    return !failed_;
  }
  void Fail(std::string message) {
    if (failed_) return;
    failed_ = true;
    message_ = std::move(message);
    failed_line_ = line;
  }
  bool failed() const { return failed_; }
  const std::string& message() const { return message_; }
  int failed_line() const { return failed_line_; }

  int line = 0;  // of the template, where work goes on

 private:
  int64_t steps_, bytes_;
  bool failed_ = false;
  std::string message_;
  int failed_line_ = 0;
};

constexpr int kMaxValueDepth = 64;
constexpr size_t kMaxTextBytes = size_t{8} << 20;  // of one string

struct Value;
struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Callable;
struct Undefined {
  std::shared_ptr<const std::string> name;  // for "'name' is undefined"; may be null
};
struct None {};
struct Text {
  std::shared_ptr<const std::string> bytes;
  bool safe = false;  // went through the filter `safe`
};

struct Value {
  std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<const List>, std::shared_ptr<const Dict>,
               Namespace*, Loop*, std::shared_ptr<const Callable>>
      data;

  Value() = default;
  template <typename T>
  static Value Of(T&& v) {
    Value value;
    value.data = std::forward<T>(v);
    return value;
  }
  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(data);
  }
  bool IsUndefined() const { return Is<Undefined>(); }
  bool IsNone() const { return Is<None>(); }
  bool IsText() const { return Is<Text>(); }
  bool IsList() const { return Is<std::shared_ptr<const List>>(); }
  bool IsDict() const { return Is<std::shared_ptr<const Dict>>(); }
  bool IsCallable() const { return Is<std::shared_ptr<const Callable>>(); }
  bool IsInteger() const { return Is<bool>() || Is<int64_t>(); }  // as in Python, a bool is one
  bool IsNumber() const { return IsInteger() || Is<double>(); }
  const std::string& text() const { return *std::get<Text>(data).bytes; }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data); }
  int64_t integer() const { return Is<bool>() ? int64_t{std::get<bool>(data)} : std::get<int64_t>(data); }
  double number() const { return Is<double>() ? std::get<double>(data) : static_cast<double>(integer()); }
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  int depth = 1;
  const Value* Find(std::string_view key) const;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};

struct MacroStatement;
// A macro, a function of the language, or a method with the value that it belongs to.
struct Callable {
  const MacroStatement* macro = nullptr;
  std::string name;
  Value self;
  bool method = false;
};

Value MakeText(Budget& budget, std::string text);
Value MakeList(Budget& budget, std::vector<Value> items, bool tuple = false);
Value MakeDict(Budget& budget, std::vector<std::pair<Value, Value>> items);
Value MakeUndefined(std::string name);

const char* TypeName(const Value& value);  // Python's: "str", "NoneType"
bool Truthy(const Value& value);
bool Equal(Budget& budget, const Value& a, const Value& b);
// -1, 0, 1 of numbers or strings; other pairs fail.
int Compare(Budget& budget, const Value& a, const Value& b, const char* op);
// Python's `item in container`.
bool Contains(Budget& budget, const Value& container, const Value& item);
// What a for loop goes over: items, keys, characters; an undefined value has none.
std::vector<Value> Iterate(Budget& budget, const Value& value);
// len() of a string, list or dictionary.
int64_t Length(Budget& budget, const Value& value);
// str() and repr().
std::string ToString(Budget& budget, const Value& value);
std::string Repr(Budget& budget, const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  int64_t indent = -1;  // -1: one line
  std::string item_separator, key_separator;
};
// json.dumps.
std::string ToJson(Budget& budget, const Value& value, const JsonStyle& style);

// By code point; indices are already within [0, length].
size_t CodePoints(std::string_view text);
std::vector<std::string_view> Characters(std::string_view text);
// Python's str.isspace for one character.
bool IsPythonSpace(int32_t code);

}  // namespace lockstep::jinja

#endif  // LOCKSTEP_ENGINE_TOKENIZER_JINJA_VALUE_H_
