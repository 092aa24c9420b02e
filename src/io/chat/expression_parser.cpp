// Recursive descent over expressions.
#include "io/chat/expression_parser.h"

#include <algorithm>
#include <deque>

namespace longspur::io::chat {
namespace {

template <class Node>
ExprPtr make(Position position, Node node) {
  return std::make_unique<Expr>(Expr{position, std::move(node)});
}

std::string shown(const Token& token) {
  switch (token.kind) {
    case TokenKind::end:
      return "end of template";
    case TokenKind::data:
      return "text";
    case TokenKind::string:
      return "string";
    default:
      return concat("'", token.text, "'");
  }
}

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (parser.depth_left_ <= 0) fail_at(parser.current().position, "nested too deeply");
  --parser.depth_left_;
}

const Token& ExpressionParser::next() {
  const Token& token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::at_op(std::string_view op) const {
  return current().kind == TokenKind::op && current().text == op;
}

bool ExpressionParser::at_name(std::string_view name) const {
  return current().kind == TokenKind::name && current().text == name;
}

bool ExpressionParser::skip_op(std::string_view op) {
  if (!at_op(op)) return false;
  next();
  return true;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  next();
  return true;
}

void ExpressionParser::expect_op(std::string_view op) {
  if (!skip_op(op)) unexpected(concat("'", op, "'"));
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) unexpected(concat("'", name, "'"));
}

void ExpressionParser::expect(TokenKind kind, std::string_view what) {
  if (current().kind != kind) unexpected(what);
  next();
}

std::string ExpressionParser::expect_identifier() {
  if (current().kind != TokenKind::name) unexpected("a name");
  return next().text;
}

int ExpressionParser::intern(const std::string& name) {
  const auto [entry, fresh] = ids_.emplace(name, static_cast<int>(names_.size()));
  if (fresh) names_.push_back(name);
  return entry->second;
}

void ExpressionParser::unexpected(std::string_view expected) const {
  fail_at(current().position, concat("found ", shown(current()), ", expected ", expected));
}

int ExpressionParser::reads(const std::string& name) const {
  const auto found = reads_.find(name);
  return found == reads_.end() ? 0 : found->second;
}

ExprPtr ExpressionParser::expression(bool conditional_too) {
  return conditional_too ? conditional() : either();
}

bool ExpressionParser::at_tuple_end(std::string_view end_name) const {
  const TokenKind kind = current().kind;
  return kind == TokenKind::variable_end || kind == TokenKind::block_end || at_op(")") ||
         (!end_name.empty() && at_name(end_name));
}

ExprPtr ExpressionParser::tuple(bool conditional_too, std::string_view end_name, bool in_brackets) {
  const Position position = current().position;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) expect_op(",");
    if (at_tuple_end(end_name)) break;
    items.push_back(expression(conditional_too));
    if (!at_op(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!items.empty()) return std::move(items.front());
    if (!in_brackets) unexpected("an expression");
  }
  return make(position, SequenceLiteral{std::move(items), true});
}

Target ExpressionParser::simple_target(bool allow_attribute) {
  if (skip_op("(")) {
    const Nesting nesting(*this);
    TupleTarget items;
    while (!at_op(")")) {
      items.items.push_back(simple_target(allow_attribute));
      if (!at_op(")")) expect_op(",");
    }
    expect_op(")");
    return {std::move(items)};
  }
  const Position position = current().position;
  const std::string name = expect_identifier();
  static constexpr std::string_view kConstants[] = {"true", "false", "none",
                                                    "True", "False", "None"};
  if (std::find(std::begin(kConstants), std::end(kConstants), name) != std::end(kConstants)) {
    fail_at(position, concat("cannot assign to ", name));
  }
  if (!allow_attribute || !skip_op(".")) return {NameTarget{intern(name)}};
  return {AttributeTarget{intern(name), expect_identifier()}};
}

Target ExpressionParser::target(std::string_view end_name, bool allow_attribute) {
  TupleTarget items;
  bool is_tuple = false;
  while (true) {
    if (!items.items.empty()) expect_op(",");
    if (at_tuple_end(end_name) || at_op("=")) break;
    items.items.push_back(simple_target(allow_attribute));
    if (!at_op(",")) break;
    is_tuple = true;
  }
  if (items.items.empty()) unexpected("a name");
  if (!is_tuple) return std::move(items.items.front());
  return {std::move(items)};
}

ExprPtr ExpressionParser::conditional() {
  const Position position = current().position;
  ExprPtr value = either();
  std::deque<Nesting>
      chain;  // without an else each conditional is the next one's value: one deeper
  while (skip_name("if")) {
    chain.emplace_back(*this);
    const bool outer = std::exchange(soft_, true);
    ExprPtr condition = either();
    ExprPtr no = skip_name("else") ? conditional() : nullptr;
    soft_ = outer;
    value = make(position, Conditional{std::move(condition), std::move(value), std::move(no)});
  }
  return value;
}

ExprPtr ExpressionParser::logic(bool any) {
  const Position position = current().position;
  std::vector<ExprPtr> operands;
  do {
    operands.push_back(any ? both() : negation());
  } while (skip_name(any ? "or" : "and"));
  if (operands.size() == 1) return std::move(operands.front());
  return make(position, Logic{any, std::move(operands)});
}

ExprPtr ExpressionParser::either() { return logic(true); }
ExprPtr ExpressionParser::both() { return logic(false); }

ExprPtr ExpressionParser::negation() {
  const Position position = current().position;
  int count = 0;
  while (skip_name("not")) ++count;
  ExprPtr operand = comparison();
  if (count == 0) return operand;
  operand = make(position, Not{std::move(operand)});
  return count % 2 == 1 ? std::move(operand) : make(position, Not{std::move(operand)});
}

bool ExpressionParser::relation(Relation* out) {
  static const std::unordered_map<std::string_view, Relation> kRelations = {
      {"==", Relation::eq}, {"!=", Relation::ne}, {"<", Relation::lt},
      {"<=", Relation::le}, {">", Relation::gt},  {">=", Relation::ge}};
  if (current().kind == TokenKind::op) {
    const auto found = kRelations.find(current().text);
    if (found == kRelations.end()) return false;
    *out = found->second;
    next();
    return true;
  }
  if (skip_name("in")) {
    *out = Relation::in;
    return true;
  }
  if (at_name("not") && look().kind == TokenKind::name && look().text == "in") {
    next();
    next();
    *out = Relation::not_in;
    return true;
  }
  return false;
}

ExprPtr ExpressionParser::comparison() {
  const Position position = current().position;
  ExprPtr first = sum();
  std::vector<std::pair<Relation, ExprPtr>> steps;
  for (Relation op{}; relation(&op);) steps.emplace_back(op, sum());
  if (steps.empty()) return first;
  return make(position, Comparison{std::move(first), std::move(steps)});
}

ExprPtr ExpressionParser::operations(
    ExprPtr (ExpressionParser::*operand)(),
    std::initializer_list<std::pair<std::string_view, Arithmetic>> ops) {
  const Position position = current().position;
  Operations chain{(this->*operand)(), {}};
  while (current().kind == TokenKind::op) {
    const auto op = std::find_if(ops.begin(), ops.end(), [this](const auto& entry) {
      return entry.first == current().text;
    });
    if (op == ops.end()) break;
    const Position at = next().position;
    chain.steps.push_back({op->second, at, (this->*operand)()});
  }
  if (chain.steps.empty()) return std::move(chain.first);
  return make(position, std::move(chain));
}

ExprPtr ExpressionParser::sum() {
  return operations(&ExpressionParser::concatenation,
                    {{"+", Arithmetic::add}, {"-", Arithmetic::subtract}});
}

ExprPtr ExpressionParser::concatenation() {
  const Position position = current().position;
  std::vector<ExprPtr> parts;
  do {
    parts.push_back(product());
  } while (skip_op("~"));
  if (parts.size() == 1) return std::move(parts.front());
  return make(position, Concatenation{std::move(parts)});
}

ExprPtr ExpressionParser::product() {
  return operations(&ExpressionParser::power, {{"*", Arithmetic::multiply},
                                               {"/", Arithmetic::divide},
                                               {"//", Arithmetic::floor_divide},
                                               {"%", Arithmetic::modulo}});
}

ExprPtr ExpressionParser::power() {
  const Position position = current().position;
  Operations chain{unary(true), {}};
  while (at_op("**")) {
    const Position at = next().position;
    chain.steps.push_back({Arithmetic::power, at, unary(true)});
  }
  if (chain.steps.empty()) return std::move(chain.first);
  return make(position, std::move(chain));
}

ExprPtr ExpressionParser::unary(bool filters) {
  const Position position = current().position;
  ExprPtr value;
  if (at_op("-") || at_op("+")) {
    const Nesting nesting(*this);
    const bool negative = next().text == "-";
    value = make(position, Sign{unary(false), negative});
  } else {
    value = primary();
  }
  Postfix postfix = postfix_steps(std::move(value), filters);
  if (postfix.steps.empty()) return std::move(postfix.base);
  return make(position, std::move(postfix));
}

ExprPtr ExpressionParser::primary() {
  const Token& token = current();
  switch (token.kind) {
    case TokenKind::name:
      return name_or_constant();
    case TokenKind::string:
      return strings();
    case TokenKind::integer:
      next();
      return make(token.position, Constant{Value::integer(token.integer)});
    case TokenKind::real:
      next();
      return make(token.position, Constant{Value::real(token.real)});
    case TokenKind::op:
      break;
    default:
      unexpected("an expression");
  }
  const Nesting nesting(*this);
  if (skip_op("(")) {
    ExprPtr value = tuple(true, {}, true);
    expect_op(")");
    return value;
  }
  if (at_op("[")) return list();
  if (at_op("{")) return dict();
  unexpected("an expression");
}

ExprPtr ExpressionParser::name_or_constant() {
  const Token& token = next();
  if (token.text == "true" || token.text == "True") {
    return make(token.position, Constant{Value::boolean(true)});
  }
  if (token.text == "false" || token.text == "False") {
    return make(token.position, Constant{Value::boolean(false)});
  }
  if (token.text == "none" || token.text == "None") return make(token.position, Constant{Value()});
  ++reads_[token.text];
  return make(token.position, Name{intern(token.text)});
}

ExprPtr ExpressionParser::strings() {
  const Position position = current().position;
  std::string joined;
  while (current().kind == TokenKind::string) joined += next().text;
  return make(position, Constant{Value::text(std::move(joined), true)});
}

ExprPtr ExpressionParser::list() {
  const Position position = current().position;
  expect_op("[");
  std::vector<ExprPtr> items;
  while (!at_op("]")) {
    if (!items.empty()) expect_op(",");
    if (at_op("]")) break;
    items.push_back(expression());
  }
  expect_op("]");
  return make(position, SequenceLiteral{std::move(items), false});
}

ExprPtr ExpressionParser::dict() {
  const Position position = current().position;
  expect_op("{");
  DictLiteral literal;
  while (!at_op("}")) {
    if (!literal.entries.empty()) expect_op(",");
    if (at_op("}")) break;
    ExprPtr key = expression();
    expect_op(":");
    literal.entries.emplace_back(std::move(key), expression());
  }
  expect_op("}");
  return make(position, std::move(literal));
}

}  // namespace longspur::io::chat
