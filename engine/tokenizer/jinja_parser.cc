#include <algorithm>
#include <initializer_list>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_lexer.h"

namespace lockstep::jinja {
namespace {

// Of a tree; the interpreter's stack depends on it. And of calls of the parser, of which a bracket takes three.
constexpr int kMaxDepth = 100;
constexpr int kMaxNesting = 240;

using ExprPtr = std::unique_ptr<Expr>;

// Recursive descent. The first error stays in status_; every function then returns at once.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Statement::Body> Run() {
    Statement::Body body = ParseBody({});
    if (!status_.ok()) return status_;
    return body;
  }

 private:
  // ---- tokens

  const Token& Peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  bool ok() const { return status_.ok(); }
  void Fail(std::string_view what) {
    if (ok()) status_ = TemplateError(Peek().line, what);
  }
  void Unsupported(std::string_view what, std::string_view name) {
    Fail(absl::StrCat(std::string(what), " \"", Printable(name), "\" is not supported"));
  }
  bool IsOperator(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).type == TokenType::kOperator && Peek(ahead).text == text;
  }
  bool IsName(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).type == TokenType::kName && Peek(ahead).text == text;
  }
  bool TakeOperator(std::string_view text) {
    if (!ok() || !IsOperator(text)) return false;
    ++at_;
    return true;
  }
  bool TakeName(std::string_view text) {
    if (!ok() || !IsName(text)) return false;
    ++at_;
    return true;
  }
  std::string Shown(const Token& token) const {
    switch (token.type) {
      case TokenType::kData:
        return "text";
      case TokenType::kVariableEnd:
        return "'}}'";
      case TokenType::kBlockEnd:
        return "'%}'";
      case TokenType::kEnd:
        return "the end of the template";
      default:
        return absl::StrCat("'", Printable(token.text), "'");
    }
  }
  void Expect(std::string_view op) {
    if (!TakeOperator(op)) Fail(absl::StrCat("expected '", std::string(op), "' and found ", Shown(Peek())));
  }
  std::string ExpectName() {
    if (ok() && Peek().type == TokenType::kName) return tokens_[at_++].text;
    Fail(absl::StrCat("expected a name and found ", Shown(Peek())));
    return "";
  }
  void ExpectEnd(TokenType type) {
    if (ok() && Peek().type == type) {
      ++at_;
    } else {
      Fail(absl::StrCat("expected the end of the tag and found ", Shown(Peek())));
    }
  }

  // ---- trees

  ExprPtr Make(ExprKind kind, std::string name = "") {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = Peek().line;
    expr->name = std::move(name);
    return expr;
  }
  // Adds a child (null for an absent one) and keeps count of the depth.
  void Add(Expr* expr, ExprPtr child) {
    if (child != nullptr) expr->depth = std::max(expr->depth, child->depth + 1);
    if (expr->depth > kMaxDepth) Fail(absl::StrCat("an expression nested deeper than ", kMaxDepth));
    expr->children.push_back(std::move(child));
  }
  ExprPtr Wrap(ExprKind kind, ExprPtr first, ExprPtr second = nullptr, std::string name = "") {
    ExprPtr expr = Make(kind, std::move(name));
    Add(expr.get(), std::move(first));
    if (second != nullptr) Add(expr.get(), std::move(second));
    return expr;
  }
  ExprPtr Nothing() { return Make(ExprKind::kConst); }

  class Nesting {
   public:
    explicit Nesting(Parser* parser) : parser_(parser) {
      if (++parser_->depth_ > kMaxNesting) parser_->Fail(absl::StrCat("nested deeper than ", kMaxNesting));
    }
    ~Nesting() { --parser_->depth_; }

   private:
    Parser* parser_;
  };

  // ---- expressions, loosest binding first

  ExprPtr ParseExpression() {
    const Nesting nesting(this);
    if (!ok()) return Nothing();
    ExprPtr value = ParseOr();
    while (TakeName("if")) {
      ExprPtr condition = ParseOr();
      ExprPtr expr = Wrap(ExprKind::kConditional, std::move(condition), std::move(value));
      Add(expr.get(), TakeName("else") ? ParseExpression() : nullptr);
      value = std::move(expr);
    }
    return value;
  }

  // expr, expr, ... as a tuple. Without `conditional` an "if" is left alone: it is a loop's filter.
  ExprPtr ParseTuple(bool conditional) {
    ExprPtr first = conditional ? ParseExpression() : ParseOr();
    if (!ok() || !IsOperator(",")) return first;
    ExprPtr tuple = Wrap(ExprKind::kTuple, std::move(first));
    while (TakeOperator(",")) {
      const TokenType type = Peek().type;
      if (type == TokenType::kBlockEnd || type == TokenType::kVariableEnd || IsOperator(")")) break;
      Add(tuple.get(), conditional ? ParseExpression() : ParseOr());
    }
    return tuple;
  }

  ExprPtr ParseOr() {
    ExprPtr left = ParseAnd();
    while (TakeName("or")) left = Wrap(ExprKind::kOr, std::move(left), ParseAnd());
    return left;
  }
  ExprPtr ParseAnd() {
    ExprPtr left = ParseNot();
    while (TakeName("and")) left = Wrap(ExprKind::kAnd, std::move(left), ParseNot());
    return left;
  }
  ExprPtr ParseNot() {
    const Nesting nesting(this);
    if (!ok()) return Nothing();
    if (TakeName("not")) return Wrap(ExprKind::kNot, ParseNot());
    return ParseCompare();
  }
  ExprPtr ParseCompare() {
    ExprPtr left = ParseSum();
    ExprPtr compare;
    while (ok()) {
      std::string op;
      for (const char* symbol : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (op.empty() && TakeOperator(symbol)) op = symbol;
      }
      if (op.empty() && TakeName("in")) op = "in";
      if (op.empty() && IsName("not") && IsName("in", 1)) {
        at_ += 2;
        op = "not in";
      }
      if (op.empty()) break;
      if (compare == nullptr) compare = Wrap(ExprKind::kCompare, std::move(left));
      compare->ops.push_back(op);
      Add(compare.get(), ParseSum());
    }
    return compare != nullptr ? std::move(compare) : std::move(left);
  }
  ExprPtr ParseBinary(std::initializer_list<const char*> operators, ExprPtr (Parser::*next)()) {
    ExprPtr left = (this->*next)();
    while (ok()) {
      std::string op;
      for (const char* symbol : operators) {
        if (op.empty() && TakeOperator(symbol)) op = symbol;
      }
      if (op.empty()) break;
      left = Wrap(ExprKind::kBinary, std::move(left), (this->*next)(), op);
    }
    return left;
  }
  ExprPtr ParseSum() { return ParseBinary({"+", "-"}, &Parser::ParseConcat); }
  ExprPtr ParseConcat() {
    ExprPtr left = ParseProduct();
    if (!ok() || !IsOperator("~")) return left;
    ExprPtr concat = Wrap(ExprKind::kConcat, std::move(left));
    while (TakeOperator("~")) Add(concat.get(), ParseProduct());
    return concat;
  }
  ExprPtr ParseProduct() {
    ExprPtr product = ParseBinary({"*", "//", "/", "%"}, &Parser::ParseUnaryWithFilters);
    if (IsOperator("**")) Unsupported("operator", "**");
    return product;
  }
  ExprPtr ParseUnaryWithFilters() { return ParseUnary(true); }
  ExprPtr ParseUnary(bool with_filters) {
    const Nesting nesting(this);
    if (!ok()) return Nothing();
    ExprPtr value;
    if (TakeOperator("-")) {
      value = Wrap(ExprKind::kNegative, ParseUnary(false));
    } else if (TakeOperator("+")) {
      value = Wrap(ExprKind::kPositive, ParseUnary(false));
    } else {
      value = ParsePrimary();
    }
    value = ParsePostfix(std::move(value));
    return with_filters ? ParseFiltersAndTests(std::move(value)) : std::move(value);
  }

  ExprPtr Constant(Value value) {
    ExprPtr expr = Make(ExprKind::kConst);
    expr->value = std::move(value);
    return expr;
  }

  ExprPtr ParsePrimary() {
    if (!ok()) return Nothing();
    const Token& token = Peek();
    switch (token.type) {
      case TokenType::kName: {
        ++at_;
        if (token.text == "true" || token.text == "True") return Constant(Value::Of(true));
        if (token.text == "false" || token.text == "False") return Constant(Value::Of(false));
        if (token.text == "none" || token.text == "None") return Constant(Value::Of(None{}));
        return Make(ExprKind::kName, token.text);
      }
      case TokenType::kString:
        return ParseStrings();
      case TokenType::kInteger: {
        int64_t number = 0;
        if (!absl::SimpleAtoi(token.text, &number))
          Fail(absl::StrCat("the number ", Printable(token.text), " is too large"));
        ++at_;
        return Constant(Value::Of(number));
      }
      case TokenType::kFloat: {
        double number = 0;
        if (!absl::SimpleAtod(token.text, &number)) Fail("a number is not valid");
        ++at_;
        return Constant(Value::Of(number));
      }
      default:
        break;
    }
    if (TakeOperator("(")) {
      if (TakeOperator(")")) return Make(ExprKind::kTuple);
      ExprPtr inner = ParseTuple(true);
      Expect(")");
      return inner;
    }
    if (IsOperator("[")) return ParseList();
    if (IsOperator("{")) return ParseDict();
    Fail(absl::StrCat("unexpected ", Shown(token)));
    return Nothing();
  }
  // Strings beside one another are one.
  ExprPtr ParseStrings() {
    std::string text;
    while (Peek().type == TokenType::kString) text += tokens_[at_++].text;
    return Constant(Value::Of(Text{std::make_shared<const std::string>(std::move(text))}));
  }
  ExprPtr ParseList() {
    ExprPtr list = Make(ExprKind::kList);
    Expect("[");
    while (ok() && !TakeOperator("]")) {
      if (!list->children.empty()) Expect(",");
      if (TakeOperator("]")) break;
      Add(list.get(), ParseExpression());
    }
    return list;
  }
  ExprPtr ParseDict() {
    ExprPtr dict = Make(ExprKind::kDict);
    Expect("{");
    while (ok() && !TakeOperator("}")) {
      if (!dict->children.empty()) Expect(",");
      if (TakeOperator("}")) break;
      Add(dict.get(), ParseExpression());
      Expect(":");
      Add(dict.get(), ParseExpression());
    }
    return dict;
  }

  ExprPtr ParsePostfix(ExprPtr value) {
    while (ok()) {
      if (TakeOperator(".")) {
        if (Peek().type == TokenType::kInteger) {
          int64_t index = 0;
          if (!absl::SimpleAtoi(Peek().text, &index)) Fail("an index is too large");
          ++at_;
          value = Wrap(ExprKind::kItem, std::move(value), Constant(Value::Of(index)));
        } else {
          value = Wrap(ExprKind::kAttribute, std::move(value), nullptr, ExpectName());
        }
      } else if (IsOperator("[")) {
        value = ParseSubscript(std::move(value));
      } else if (IsOperator("(")) {
        value = ParseCall(std::move(value));
      } else {
        break;
      }
    }
    return value;
  }
  ExprPtr ParseSubscript(ExprPtr value) {
    Expect("[");
    if (!IsOperator(":")) {
      ExprPtr index = ParseExpression();
      if (IsOperator(",")) Fail("an index of several values is not supported");
      if (TakeOperator("]")) return Wrap(ExprKind::kItem, std::move(value), std::move(index));
      value = Wrap(ExprKind::kSlice, std::move(value), std::move(index));
    } else {
      value = Wrap(ExprKind::kSlice, std::move(value));
      Add(value.get(), nullptr);
    }
    for (int part = 0; part < 2; ++part) {
      const bool given = TakeOperator(":");
      Add(value.get(), given && !IsOperator(":") && !IsOperator("]") ? ParseExpression() : nullptr);
    }
    Expect("]");
    return value;
  }
  ExprPtr ParseCall(ExprPtr function) {
    ExprPtr call = Wrap(ExprKind::kCall, std::move(function));
    ParseArguments(call.get());
    return call;
  }
  // "(a, b, name=c)"
  void ParseArguments(Expr* call) {
    Expect("(");
    bool first = true;
    while (ok() && !TakeOperator(")")) {
      if (!first) Expect(",");
      first = false;
      if (TakeOperator(")")) break;
      if (IsOperator("*") || IsOperator("**")) return Fail("arguments by * or ** are not supported");
      if (Peek().type == TokenType::kName && IsOperator("=", 1)) {
        std::string name = ExpectName();
        ++at_;
        ExprPtr value = ParseExpression();
        call->depth = std::max(call->depth, value->depth + 1);
        if (call->depth > kMaxDepth) Fail(absl::StrCat("an expression nested deeper than ", kMaxDepth));
        call->named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call->named.empty()) return Fail("an argument without a name follows one with a name");
        Add(call, ParseExpression());
      }
    }
  }

  ExprPtr ParseFiltersAndTests(ExprPtr value) {
    while (ok()) {
      if (TakeOperator("|")) {
        std::string name = ExpectName();
        if (ok() && !KnownFilter(name)) Unsupported("filter", name);
        value = Wrap(ExprKind::kFilter, std::move(value), nullptr, std::move(name));
        if (IsOperator("(")) ParseArguments(value.get());
      } else if (TakeName("is")) {
        value = ParseTest(std::move(value));
      } else if (IsOperator("(")) {
        value = ParseCall(std::move(value));
      } else {
        break;
      }
    }
    return value;
  }
  ExprPtr ParseTest(ExprPtr value) {
    const bool negated = TakeName("not");
    std::string name = ExpectName();
    if (ok() && !KnownTest(name)) Unsupported("test", name);
    ExprPtr test = Wrap(ExprKind::kTest, std::move(value), nullptr, std::move(name));
    const TokenType type = Peek().type;
    const bool literal = type == TokenType::kString || type == TokenType::kInteger || type == TokenType::kFloat ||
                         IsOperator("[") || IsOperator("{");
    const bool name_follows = type == TokenType::kName && !IsName("else") && !IsName("or") && !IsName("and");
    if (IsName("is")) Fail("tests cannot be chained with \"is\"");
    if (IsOperator("(")) {
      ParseArguments(test.get());
    } else if (literal || (name_follows && !IsName("if") && !IsName("in") && !IsName("not"))) {
      Add(test.get(), ParsePostfix(ParsePrimary()));
    }
    return negated ? Wrap(ExprKind::kNot, std::move(test)) : std::move(test);
  }

  // ---- statements

  // Up to one of the block names in `ends`, which is left in block_end_ with at_ behind it; no `ends`: to the end of
  // the template.
  Statement::Body ParseBody(std::initializer_list<const char*> ends) {
    const Nesting nesting(this);
    Statement::Body body;
    const int begin_line = Peek().line;
    while (ok()) {
      const Token& token = Peek();
      Statement statement;
      statement.line = token.line;
      if (token.type == TokenType::kEnd) {
        if (ends.size() > 0) {
          Fail(absl::StrCat("the block of line ", begin_line, " has no {% ", *(ends.end() - 1), " %}"));
        }
        break;
      }
      ++at_;
      if (token.type == TokenType::kData) {
        statement.text = token.text;
        body.push_back(std::move(statement));
      } else if (token.type == TokenType::kVariableBegin) {
        statement.kind = StatementKind::kPrint;
        statement.expr = ParseTuple(true);
        ExpectEnd(TokenType::kVariableEnd);
        body.push_back(std::move(statement));
      } else {
        const std::string name = ExpectName();
        if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
          block_end_ = name;
          return body;
        }
        ParseStatement(name, std::move(statement), &body);
      }
    }
    return body;
  }

  void ParseStatement(const std::string& name, Statement statement, Statement::Body* body) {
    if (name == "if") {
      ParseIf(&statement);
    } else if (name == "for") {
      ParseFor(&statement);
    } else if (name == "set") {
      ParseSet(&statement);
    } else if (name == "macro") {
      ParseMacro(&statement);
    } else if (name == "break" || name == "continue") {
      statement.kind = name == "break" ? StatementKind::kBreak : StatementKind::kContinue;
      if (loops_ == 0) Fail(absl::StrCat("{% ", name, " %} outside of a loop"));
      ExpectEnd(TokenType::kBlockEnd);
    } else if (name == "generation") {  // marks what the assistant said; the text is that of its body
      ExpectEnd(TokenType::kBlockEnd);
      Statement::Body inner = ParseBody({"endgeneration"});
      ExpectEnd(TokenType::kBlockEnd);
      for (Statement& part : inner) body->push_back(std::move(part));
      return;
    } else if (name.rfind("end", 0) == 0 || name == "else" || name == "elif") {
      --at_;
      Fail(absl::StrCat("unexpected {% ", Printable(name), " %}"));
    } else {
      --at_;
      Unsupported("statement", name);
    }
    if (ok()) body->push_back(std::move(statement));
  }

  void ParseIf(Statement* statement) {
    statement->kind = StatementKind::kIf;
    do {
      ExprPtr condition = ParseTuple(true);
      ExpectEnd(TokenType::kBlockEnd);
      statement->branches.emplace_back(std::move(condition), ParseBody({"elif", "else", "endif"}));
    } while (ok() && block_end_ == "elif");
    if (ok() && block_end_ == "else") {
      ExpectEnd(TokenType::kBlockEnd);
      statement->otherwise = ParseBody({"endif"});
    }
    ExpectEnd(TokenType::kBlockEnd);
  }

  void ParseFor(Statement* statement) {
    statement->kind = StatementKind::kFor;
    const bool parenthesis = TakeOperator("(");
    do {
      if (!statement->targets.empty() && IsName("in")) break;
      statement->targets.push_back({ExpectName(), ""});
    } while (TakeOperator(","));
    if (parenthesis) Expect(")");
    if (!TakeName("in")) Fail(absl::StrCat("expected 'in' and found ", Shown(Peek())));
    statement->expr = ParseTuple(false);
    if (TakeName("if")) statement->filter = ParseExpression();
    if (IsName("recursive")) Unsupported("loop", "recursive");
    ExpectEnd(TokenType::kBlockEnd);
    ++loops_;
    statement->body = ParseBody({"else", "endfor"});
    --loops_;
    if (ok() && block_end_ == "else") {
      ExpectEnd(TokenType::kBlockEnd);
      statement->otherwise = ParseBody({"endfor"});
    }
    ExpectEnd(TokenType::kBlockEnd);
  }

  void ParseSet(Statement* statement) {
    statement->kind = StatementKind::kSet;
    do {
      Target target;
      target.name = ExpectName();
      if (TakeOperator(".")) target.attribute = ExpectName();
      statement->targets.push_back(std::move(target));
    } while (TakeOperator(","));
    if (TakeOperator("=")) {
      statement->expr = ParseTuple(true);
      ExpectEnd(TokenType::kBlockEnd);
      return;
    }
    if (IsOperator("|")) return Fail("a set block with a filter is not supported");
    ExpectEnd(TokenType::kBlockEnd);
    if (statement->targets.size() > 1) return Fail("a set block has one name");
    statement->body = ParseBody({"endset"});
    ExpectEnd(TokenType::kBlockEnd);
  }

  void ParseMacro(Statement* statement) {
    statement->kind = StatementKind::kMacro;
    if (loops_ > 0 || in_macro_) return Fail("a macro inside of a loop or macro is not supported");
    statement->macro = std::make_unique<MacroStatement>();
    MacroStatement* macro = statement->macro.get();
    macro->name = ExpectName();
    Expect("(");
    while (ok() && !TakeOperator(")")) {
      if (!macro->parameters.empty()) Expect(",");
      if (TakeOperator(")")) break;
      macro->parameters.push_back(ExpectName());
      const bool has_default = TakeOperator("=");
      if (!has_default && !macro->defaults.empty() && macro->defaults.back() != nullptr) {
        return Fail("a parameter without a default follows one with a default");
      }
      macro->defaults.push_back(has_default ? ParseExpression() : nullptr);
    }
    ExpectEnd(TokenType::kBlockEnd);
    in_macro_ = true;
    macro->body = ParseBody({"endmacro"});
    in_macro_ = false;
    ExpectEnd(TokenType::kBlockEnd);
  }

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  bool in_macro_ = false;
  std::string block_end_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<Statement::Body> ParseTemplate(std::string_view source) {
  absl::StatusOr<std::vector<Token>> tokens = Tokenize(source);
  if (!tokens.ok()) return tokens.status();
  return Parser(*std::move(tokens)).Run();
}

}  // namespace lockstep::jinja
