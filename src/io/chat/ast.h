// The parsed template. Chains that are written flat (a + b + c, x.y[0]|trim) are flat here too, so
// that depth is nesting that the author wrote, and bounded.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "io/chat/lexer.h"
#include "io/chat/value.h"

namespace longspur::io::chat {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;
struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

using Filter = Value (*)(Interpreter&, const Value&, Arguments&);
using Test = bool (*)(Interpreter&, const Value&, Arguments&);

struct Constant {
  Value value;
};
struct Name {
  int id;
};
struct SequenceLiteral {
  std::vector<ExprPtr> items;
  bool tuple;
};
struct DictLiteral {
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};
struct Not {
  ExprPtr operand;
};
struct Sign {
  ExprPtr operand;
  bool negative;
};
enum class Arithmetic : uint8_t { add, subtract, multiply, divide, floor_divide, modulo, power };
struct Operations {  // from left to right
  struct Step {
    Arithmetic op;
    Position position;
    ExprPtr right;
  };
  ExprPtr first;
  std::vector<Step> steps;
};
struct Concatenation {
  std::vector<ExprPtr> parts;
};
struct Logic {
  bool any;  // or
  std::vector<ExprPtr> operands;
};
enum class Relation : uint8_t { eq, ne, lt, le, gt, ge, in, not_in };
struct Comparison {
  ExprPtr first;
  std::vector<std::pair<Relation, ExprPtr>> steps;
};
struct Conditional {
  ExprPtr condition, yes, no;  // no may be null
};

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, star_star;  // may be null
};
struct Attribute {
  std::string name;
};
struct Subscript {
  ExprPtr index;
};
struct Slice {
  ExprPtr start, stop, step;  // each may be null
};
struct Call {
  CallArguments arguments;
};
struct FilterStep {
  std::string name;
  Filter filter;  // null: unknown, an error when it is reached
  CallArguments arguments;
};
struct TestStep {
  std::string name;
  Test test;
  CallArguments arguments;
  bool negated;
};
struct PostfixStep {
  Position position;
  std::variant<Attribute, Subscript, Slice, Call, FilterStep, TestStep> step;
};
struct Postfix {
  ExprPtr base;  // null: what a filter block captured
  std::vector<PostfixStep> steps;
};

struct Expr {
  Position position;
  std::variant<Constant,
               Name,
               SequenceLiteral,
               DictLiteral,
               Not,
               Sign,
               Operations,
               Concatenation,
               Logic,
               Comparison,
               Conditional,
               Postfix>
      node;
};

struct Target;
struct NameTarget {
  int id;
};
struct AttributeTarget {  // ns.attribute
  int id;
  std::string attribute;
};
struct TupleTarget {
  std::vector<Target> items;
};
struct Target {
  std::variant<NameTarget, AttributeTarget, TupleTarget> node;
};

struct Signature {
  struct Parameter {
    int id;
    std::string name;
    ExprPtr fallback;  // may be null
  };
  std::vector<Parameter> parameters;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
};

struct Data {
  TextPtr text;
};
struct Output {
  std::vector<ExprPtr> values;
};
struct If {
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExprPtr items;
  ExprPtr condition;  // may be null
  Body body, otherwise;
  bool recursive;
  bool uses_loop;
  std::vector<int> hidden, hidden_otherwise;  // names that are undefined at first (scoping.h)
};
struct Set {
  Target target;
  ExprPtr value;
};
struct SetBlock {
  Target target;
  ExprPtr filters;  // Postfix without base, or null
  Body body;
  std::vector<int> hidden;
};
struct With {
  std::vector<std::pair<Target, ExprPtr>> values;
  Body body;
  std::vector<int> hidden;
};
struct MacroDefinition {
  int id;
  std::string name;
  Signature signature;
  Body body;
  std::vector<int> hidden;
};
struct CallBlock {
  ExprPtr call;  // Postfix whose last step is a Call
  MacroDefinition caller;
};
struct FilterBlock {
  ExprPtr filters;
  Body body;
  std::vector<int> hidden;
};
struct Generation {
  Body body;
  std::vector<int> hidden;
};
struct Break {};
struct Continue {};

struct Statement {
  Position position;
  std::variant<Data,
               Output,
               If,
               For,
               Set,
               SetBlock,
               With,
               MacroDefinition,
               CallBlock,
               FilterBlock,
               Generation,
               Break,
               Continue>
      node;
};

struct Template {
  Body body;
  std::vector<int> hidden;
  std::vector<std::string> names;  // by id
  int loop_id, caller_id, varargs_id, kwargs_id;
};

}  // namespace longspur::io::chat
