// The part of the expression parser for what follows a value: attributes, subscripts, calls,
// filters and tests.
#include "io/chat/builtins.h"
#include "io/chat/expression_parser.h"

namespace longspur::io::chat {
namespace {

template <class Node>
ExprPtr make(Position position, Node node) {
  return std::make_unique<Expr>(Expr{position, std::move(node)});
}

}  // namespace

Postfix ExpressionParser::postfix_steps(ExprPtr base, bool filters) {
  Postfix chain{std::move(base), {}};
  bool filtered = false;  // after a filter or test only filters, tests and calls may follow
  while (true) {
    const Position position = current().position;
    if (!filtered && at_op(".")) {
      chain.steps.push_back(dot());
    } else if (!filtered && at_op("[")) {
      chain.steps.push_back(subscript());
    } else if (at_op("(")) {
      chain.steps.push_back({position, chat::Call{call_arguments()}});
    } else if (filters && at_op("|")) {
      next();
      chain.steps.push_back(filter());
      filtered = true;
    } else if (filters && at_name("is")) {
      chain.steps.push_back(test());
      filtered = true;
    } else {
      return chain;
    }
  }
}

PostfixStep ExpressionParser::dot() {
  const Position position = next().position;
  const Token& token = current();
  if (token.kind == TokenKind::name) {
    next();
    return {position, Attribute{token.text}};
  }
  if (token.kind != TokenKind::integer) unexpected("a name or a number");
  next();
  return {position, Subscript{make(token.position, Constant{Value::integer(token.integer)})}};
}

PostfixStep ExpressionParser::subscript() {
  const Nesting nesting(*this);
  const Position position = next().position;
  PostfixStep first{position, subscribed()};
  if (skip_op("]")) return first;
  if (!std::holds_alternative<Subscript>(first.step)) unexpected("']'");
  std::vector<ExprPtr> items;
  items.push_back(std::move(std::get<Subscript>(first.step).index));
  while (!skip_op("]")) {
    expect_op(",");
    if (!at_op("]")) items.push_back(expression());
  }
  return {position, Subscript{make(position, SequenceLiteral{std::move(items), true})}};
}

std::variant<Attribute, Subscript, Slice, Call, FilterStep, TestStep>
ExpressionParser::subscribed() {
  Slice slice;
  if (!at_op(":")) {
    slice.start = expression();
    if (!at_op(":")) return Subscript{std::move(slice.start)};
  }
  expect_op(":");
  if (!at_op(":") && !at_op("]") && !at_op(",")) slice.stop = expression();
  if (skip_op(":") && !at_op("]") && !at_op(",")) slice.step = expression();
  return slice;
}

void ExpressionParser::call_argument(CallArguments& arguments, Position position) {
  const auto ensure = [position](bool valid) {
    if (!valid) fail_at(position, "invalid order of arguments in a call");
  };
  if (skip_op("*")) {
    ensure(!arguments.star && !arguments.star_star);
    arguments.star = expression();
  } else if (skip_op("**")) {
    ensure(!arguments.star_star);
    arguments.star_star = expression();
  } else if (current().kind == TokenKind::name && look().kind == TokenKind::op &&
             look().text == "=") {
    ensure(!arguments.star_star);
    std::string name = next().text;
    next();
    for (const auto& named : arguments.named) {
      if (named.first == name) fail_at(position, concat("argument '", name, "' given twice"));
    }
    arguments.named.emplace_back(std::move(name), expression());
  } else {
    ensure(!arguments.star && !arguments.star_star && arguments.named.empty());
    arguments.positional.push_back(expression());
  }
}

CallArguments ExpressionParser::call_arguments() {
  const Nesting nesting(*this);
  const Position position = current().position;
  expect_op("(");
  CallArguments arguments;
  for (bool first = true; !at_op(")"); first = false) {
    if (!first) {
      expect_op(",");
      if (at_op(")")) break;
    }
    call_argument(arguments, position);
  }
  expect_op(")");
  return arguments;
}

std::string ExpressionParser::dotted_name() {
  std::string name = expect_identifier();
  while (skip_op(".")) name.append(1, '.').append(expect_identifier());
  return name;
}

PostfixStep ExpressionParser::filter() {
  const Position position = current().position;
  FilterStep step{dotted_name(), nullptr, {}};
  step.filter = find_filter(step.name);
  if (step.filter == nullptr && !soft_)
    fail_at(position, concat("no filter named '", step.name, "'"));
  if (at_op("(")) step.arguments = call_arguments();
  return {position, std::move(step)};
}

bool ExpressionParser::at_test_argument() const {
  switch (current().kind) {
    case TokenKind::name:
      return !at_name("else") && !at_name("or") && !at_name("and");
    case TokenKind::string:
    case TokenKind::integer:
    case TokenKind::real:
      return true;
    default:
      return at_op("[") || at_op("{");
  }
}

PostfixStep ExpressionParser::test() {
  next();  // is
  const bool negated = skip_name("not");
  const Position position = current().position;
  TestStep step{dotted_name(), nullptr, {}, negated};
  step.test = find_test(step.name);
  if (step.test == nullptr && !soft_) fail_at(position, concat("no test named '", step.name, "'"));
  if (at_op("(")) {
    step.arguments = call_arguments();
  } else if (at_test_argument()) {
    if (at_name("is")) unexpected("an argument: tests cannot be chained with 'is'");
    const Nesting nesting(*this);
    Postfix argument = postfix_steps(primary(), false);
    const Position at = position;
    step.arguments.positional.push_back(argument.steps.empty() ? std::move(argument.base)
                                                               : make(at, std::move(argument)));
  }
  return {position, std::move(step)};
}

ExprPtr ExpressionParser::filters_only(bool first_without_pipe) {
  const Position position = current().position;
  Postfix chain{nullptr, {}};
  if (first_without_pipe) chain.steps.push_back(filter());
  while (skip_op("|")) chain.steps.push_back(filter());
  if (chain.steps.empty()) return nullptr;
  return make(position, std::move(chain));
}

}  // namespace longspur::io::chat
