#include "learner/verifier/units.h"

namespace lockstep {
namespace {

struct Unit {
  std::string_view word, name;
};

constexpr Unit kUnits[] = {
    {"mm", "mm"},         {"millimeter", "mm"}, {"millimetre", "mm"}, {"cm", "cm"},         {"centimeter", "cm"},
    {"centimetre", "cm"}, {"m", "m"},           {"meter", "m"},       {"metre", "m"},       {"km", "km"},
    {"kilometer", "km"},  {"kilometre", "km"},  {"in", "in"},         {"inch", "in"},       {"inche", "in"},
    {"ft", "ft"},         {"foot", "ft"},       {"feet", "ft"},       {"yd", "yd"},         {"yard", "yd"},
    {"mi", "mi"},         {"mile", "mi"},       {"s", "s"},           {"sec", "s"},         {"second", "s"},
    {"min", "min"},       {"minute", "min"},    {"h", "h"},           {"hr", "h"},          {"hour", "h"},
    {"day", "day"},       {"week", "week"},     {"month", "month"},   {"year", "year"},     {"mg", "mg"},
    {"g", "g"},           {"gram", "g"},        {"kg", "kg"},         {"kilogram", "kg"},   {"lb", "lb"},
    {"pound", "lb"},      {"oz", "oz"},         {"ounce", "oz"},      {"ml", "ml"},         {"milliliter", "ml"},
    {"l", "l"},           {"liter", "l"},       {"litre", "l"},       {"gallon", "gal"},    {"cent", "cent"},
    {"dollar", "dollar"}, {"usd", "dollar"},    {"euro", "euro"},     {"degree", "degree"}, {"deg", "degree"},
    {"radian", "radian"}, {"rad", "radian"},    {"%", "%"},           {"percent", "%"},     {"mph", "mph"},
    {"kph", "kph"},       {"acre", "acre"},     {"hectare", "ha"},
};

}  // namespace

std::string_view KnownUnit(std::string_view words) {
  for (const std::string_view prefix : {"square ", "sq ", "cubic ", "cu "}) {
    if (words.substr(0, prefix.size()) == prefix) words.remove_prefix(prefix.size());
  }
  for (const std::string_view suffix : {" squared", " cubed"}) {
    if (words.size() > suffix.size() && words.substr(words.size() - suffix.size()) == suffix) {
      words.remove_suffix(suffix.size());
    }
  }
  const std::string_view single = words.size() > 1 && words.back() == 's' ? words.substr(0, words.size() - 1) : words;
  for (const Unit& unit : kUnits) {
    if (unit.word == words || (unit.word.size() > 1 && unit.word == single)) return unit.name;
  }
  return {};
}

}  // namespace lockstep
