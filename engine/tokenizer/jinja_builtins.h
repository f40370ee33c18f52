// The filters, tests and methods of the chat-template language. Each has Python's or Jinja2's arguments by their names.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_JINJA_BUILTINS_H_
#define LOCKSTEP_ENGINE_TOKENIZER_JINJA_BUILTINS_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/tokenizer/jinja_value.h"

namespace lockstep::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Arguments in the order of the parameters; null: not given.
using Bound = std::vector<const Value*>;

struct BuiltIn {
  std::string_view name;
  std::vector<std::string_view> parameters;
  Value (*function)(Budget& budget, const Value& self, const Bound& arguments);
};

// Calls `function`; arguments that it does not have are a failure. `what` is "filter" or "method".
Value Invoke(Budget& budget, const BuiltIn& function, const char* what, const Value& self, const Arguments& arguments);

Value ApplyFilter(Budget& budget, std::string_view name, const Value& self, const Arguments& arguments);
bool ApplyTest(Budget& budget, std::string_view name, const Value& self, const std::vector<Value>& arguments);

// The method of a string or dictionary; null: it has none of the name.
const BuiltIn* FindMethod(const Value& self, std::string_view name);

// value.name and value[key], in this order of precedence: items of a dictionary, then nothing. Undefined when absent.
Value GetItem(Budget& budget, const Value& container, const Value& key);
// container[start:stop:step] of Python.
Value Slice(Budget& budget, const Value& container, const Value* start, const Value* stop, const Value* step);
// + - * / // %
Value Arithmetic(Budget& budget, std::string_view op, const Value& a, const Value& b);

const std::vector<BuiltIn>& StringMethods();
// str.strip, lstrip, rstrip; null characters: white space.
std::string_view Strip(std::string_view text, const std::string* characters, bool left, bool right);
// str.splitlines.
std::vector<std::string_view> LinesOf(std::string_view text);
std::string ReplaceText(Budget& budget, std::string_view text, std::string_view from, std::string_view to,
                        int64_t count);
std::string ChangeCase(std::string_view text, bool upper);

}  // namespace lockstep::jinja

#endif  // LOCKSTEP_ENGINE_TOKENIZER_JINJA_BUILTINS_H_
