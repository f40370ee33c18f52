// The answers of public data sets of mathematics problems (testdata/answers.txt): each equals itself and its common
// rewritings, and none of the 50 that follow it, but for the pairs that an independent oracle calls equal.
#include <cstdlib>
#include <fstream>
#include <functional>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "learner/verifier/math_answer.h"

namespace lockstep {
namespace {

constexpr size_t kWindow = 50;

std::vector<std::string> Lines(const std::string& name) {
  std::ifstream file(std::string(std::getenv("TEST_SRCDIR")) + "/" + std::getenv("TEST_WORKSPACE") +
                     "/learner/verifier/testdata/" + name);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::string Grouped(std::string digits, const std::string& separator) {
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) digits.insert(at, separator);
  return digits;
}

using Rewritings = std::vector<std::string>;

void OfAnyAnswer(const std::string& a, Rewritings* out) {
  const std::string plain = Replaced(Replaced(a, "\\dfrac", "\\frac"), "\\tfrac", "\\frac");
  out->insert(out->end(),
              {Replaced(plain, "\\frac", "\\dfrac"), Replaced(plain, "\\frac", "\\tfrac"), "$" + a + "$",
               "$$" + a + "$$", "\\(" + a + "\\)", "\\[" + a + "\\]", "{" + a + "}", "  " + a + " ", a + ".",
               "\\displaystyle " + a, Replaced(Replaced(a, "\\left", ""), "\\right", ""),
               Replaced(a, "^\\circ", "^{\\circ}"), Replaced(Replaced(a, " + ", "+"), " - ", "-"),
               Replaced(a, "pmatrix", "bmatrix"), Replaced(a, "\\cup", "\u222a"), Replaced(a, "\\%", "%"),
               Replaced(a, "\\text{", "\\mbox{"), Replaced(a, "\\text{", "\\textbf{"), Replaced(a, "-", "\u2212")});
  if (a.find("\\left") == std::string::npos) {
    out->push_back(Replaced(Replaced(a, "(", "\\left("), ")", "\\right)"));
  }
}

void OfWholeNumber(const std::string& sign, const std::string& digits, Rewritings* out) {
  const std::string a = sign + digits;
  for (const char* suffix : {".0", ".00", "\\text{ units}", "^\\circ", "\\text{ cm}", "\\text{ cm}^2", " inches", "\\%",
                             " \\text{ people}"}) {
    out->push_back(a + suffix);
  }
  out->insert(out->end(),
              {"x = " + a, "n=" + a, "f(2) = " + a, "\\$" + a, "\\frac{" + a + "}{1}", a + "/1", "\\text{" + a + "}",
               "\\mathbf{" + a + "}", "\\{" + a + "\\}", a + " + 0", "-(-" + (sign.empty() ? a : "(" + a + ")") + ")"});
  if (digits.size() > 3 && digits[0] != '0') {
    for (const char* separator : {",", ",\\!", "{,}", "\\,", " "}) out->push_back(sign + Grouped(digits, separator));
  }
}

void OfFraction(const std::string& sign, long above, long below, Rewritings* out) {
  const std::string p = std::to_string(above), q = std::to_string(below);
  out->insert(out->end(), {sign + p + "/" + q, sign + p + " / " + q, "\\frac{" + sign + p + "}{" + q + "}",
                           sign + "\\frac{" + std::to_string(3 * above) + "}{" + std::to_string(3 * below) + "}",
                           sign + p + " \\div " + q, sign + "(" + p + "/" + q + ")"});
  if (p.size() == 1 && q.size() == 1) out->push_back(sign + "\\frac" + p + q);
  if (sign.empty() && above > below && above % below != 0) {
    const std::string whole = std::to_string(above / below), rest = std::to_string(above % below);
    out->insert(out->end(), {whole + "\\frac{" + rest + "}{" + q + "}", whole + " " + rest + "/" + q});
  }
  long tens = 1, digits = 0;
  while (tens % below != 0 && digits < 9) {
    tens *= 10;
    ++digits;
  }
  if (tens % below == 0 && digits > 0) {
    std::string decimal = std::to_string(above * (tens / below));
    if (decimal.size() <= static_cast<size_t>(digits)) decimal.insert(0, digits + 1 - decimal.size(), '0');
    decimal.insert(decimal.size() - digits, ".");
    out->insert(out->end(), {sign + decimal, sign + decimal + "000"});
  }
}

Rewritings RewritingsOf(const std::string& a) {
  static const std::regex whole("(-?)(\\d+)"), fraction("(-?)\\\\[dt]?frac ?\\{?(\\d+)\\}? ?\\{(\\d+)\\}"),
      decimal("(-?)(\\d*)\\.(\\d+)"), words("\\\\text\\{([^{}]*)\\}"), list("(-?\\w+), ?(-?\\w+)(, ?-?\\w+)?"),
      equation("([a-z]) ?= ?([^=]+)"), vanishing("([^=]+[a-z][^=]*) = 0"),
      plus_minus("(.*)\\\\pm([^{}]*(\\{[^{}]*\\})?)");
  Rewritings out;
  OfAnyAnswer(a, &out);
  std::smatch m;
  if (std::regex_match(a, m, whole)) OfWholeNumber(m[1], m[2], &out);
  if (std::regex_match(a, m, fraction)) OfFraction(m[1], std::stol(m[2]), std::stol(m[3]), &out);
  if (std::regex_match(a, m, decimal)) {
    out.insert(out.end(),
               {a + "0", m[1].str() + "0" + m[2].str() + "." + m[3].str(),
                m[1].str() + "\\frac{" + m[2].str() + m[3].str() + "}{1" + std::string(m[3].length(), '0') + "}"});
  }
  if (std::regex_match(a, m, words))
    out.insert(out.end(), {m[1], "\\mathrm{" + m[1].str() + "}", "\\textit{" + m[1].str() + "}."});
  if (a.find("^\\circ") != std::string::npos) {
    for (const char* degrees : {"", "\u00b0", "\\text{ degrees}", " degrees", "^{\\circ}", "\\degree"}) {
      out.push_back(Replaced(a, "^\\circ", degrees));
    }
  }
  static const std::regex thousands(".*\\d,\\d\\d\\d.*");
  if (std::regex_match(a, m, list) && !std::regex_match(a, thousands)) {
    const std::string x = m[1], y = m[2], z = m[3].length() > 0 ? std::string(m[3]).substr(1) : "";
    out.insert(out.end(),
               {(z.empty() ? "" : z + ", ") + y + "," + x, "\\{" + a + "\\}",
                z.empty() ? x + " \\text{ and } " + y : x + ", " + y + ", and " + z, "\\left\\{" + a + "\\right\\}"});
  }
  if (std::regex_match(a, m, equation)) out.insert(out.end(), {m[2], m[2].str() + " = " + m[1].str()});
  if (std::regex_match(a, m, vanishing)) out.insert(out.end(), {"0 = " + m[1].str(), "-2(" + m[1].str() + ") = 0"});
  if (std::regex_match(a, m, plus_minus)) {
    out.push_back(m[1].str() + "-" + m[2].str() + ", " + m[1].str() + "+" + m[2].str());
  }
  if (a.find("\\$") != std::string::npos)
    out.insert(out.end(), {Replaced(a, "\\$", ""), Replaced(a, "\\$", "") + " dollars"});
  return out;
}

TEST(Answers, EveryAnswerEqualsItselfAndItsRewritings) {
  const std::vector<std::string> answers = Lines("answers.txt");
  ASSERT_GT(answers.size(), 1000u);
  size_t rewritten = 0;
  for (const std::string& a : answers) {
    EXPECT_TRUE(SameAnswer(a, a)) << a;
    for (const std::string& b : RewritingsOf(a)) {
      ++rewritten;
      EXPECT_TRUE(SameAnswer(b, a)) << b << " is a rewriting of " << a;
      EXPECT_TRUE(SameAnswer(a, b)) << b << " is a rewriting of " << a;
    }
  }
  EXPECT_GT(rewritten, 15000u);
  std::printf("%zu answers, %zu rewritings\n", answers.size(), rewritten);
}

TEST(Answers, NoAnswerEqualsTheNextFiftyUnlessTheOracleSaysSo) {
  const std::vector<std::string> answers = Lines("answers.txt");
  std::set<std::pair<std::string, std::string>> equal;
  for (const std::string& line : Lines("equal_answers.txt")) {
    const size_t tab = line.find('\t');
    ASSERT_NE(tab, std::string::npos);
    equal.emplace(line.substr(0, tab), line.substr(tab + 1));
  }
  size_t pairs = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    for (size_t j = i + 1; j < std::min(answers.size(), i + 1 + kWindow); ++j) {
      const bool same = equal.count({answers[i], answers[j]}) > 0;
      EXPECT_EQ(SameAnswer(answers[i], answers[j]), same) << answers[i] << " / " << answers[j];
      pairs += !same;
    }
  }
  EXPECT_GT(pairs, 50000u);
  std::printf("%zu pairs of different answers\n", pairs);
}

}  // namespace
}  // namespace lockstep
