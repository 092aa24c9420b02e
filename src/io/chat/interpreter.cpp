// Expressions, attributes and calls. Statements are in statements.cpp.
#include "io/chat/interpreter.h"

#include <algorithm>

#include "io/chat/builtins.h"
#include "io/chat/nesting.h"
#include "io/chat/objects.h"

namespace longspur::io::chat {
namespace {

constexpr int64_t kListSteps = 4;  // what making a list costs beside its items
constexpr int kRunTimeDepth = 16;  // levels of execution for one level a template may be written
constexpr int64_t kBaseMemory = 16 << 20;  // bytes for the conversation and intermediate values
constexpr int kMemoryPerOutput = 2;  // bytes that may be made in all, for one that may come out

int64_t memory_for(int64_t output_bytes) {
  if (output_bytes > (INT64_MAX - kBaseMemory) / kMemoryPerOutput) return INT64_MAX;
  return kBaseMemory + output_bytes * kMemoryPerOutput;
}

void add_named(Arguments& out, const Value& named) {
  if (!named.is_dict()) fail("argument after ** must be a mapping, not ", type_name(named));
  for (const auto& [key, value] : named.as_dict().entries) {
    if (!key.is_text()) fail("keywords must be strings");
    out.named.emplace_back(key.bytes(), value);
  }
}

}  // namespace

Value* Scope::find(int id) {
  for (Scope* scope = this; scope != nullptr; scope = scope->parent) {
    for (auto& variable : scope->variables) {
      if (variable.first == id) return &variable.second;
    }
  }
  return nullptr;
}

void Scope::set(int id, Value value) {
  for (auto& variable : variables) {
    if (variable.first == id) {
      variable.second = std::move(value);
      return;
    }
  }
  variables.emplace_back(id, std::move(value));
}

Interpreter::Interpreter(const Template& source, const ChatTemplateLimits& limits, std::time_t now)
    : template_(source),
      budget_(limits.steps, memory_for(limits.output_bytes), limits.loop_iterations),
      max_output_(limits.output_bytes),
      depth_left_(limits.depth * kRunTimeDepth),
      calls_left_(limits.depth),
      now_(now) {
  scope_ = open_scope(nullptr);
  for (size_t id = 0; id < source.names.size(); ++id) {
    if (auto global = find_global(source.names[id])) {
      scope_->set(static_cast<int>(id), std::move(*global));
    }
  }
}

void Interpreter::define(const std::string& name, Value value) {
  const auto found = std::find(template_.names.begin(), template_.names.end(), name);
  if (found == template_.names.end()) return;  // the template never asks
  scope_->set(static_cast<int>(found - template_.names.begin()), std::move(value));
}

Text Interpreter::run() {
  Text out;
  out_ = &out;
  scope_ = open_scope(scope_);
  hide(template_.hidden);
  exec(template_.body);
  return out;
}

Value Interpreter::list(std::vector<Value> items, bool special, bool tuple) {
  budget_.spend(kListSteps);
  budget_.allocate(items_bytes(items.size()) + static_cast<int64_t>(sizeof(Sequence)));
  return make_sequence(std::move(items), tuple, special);
}

Value Interpreter::make_namespace(std::vector<std::pair<std::string, Value>> entries) {
  budget_.allocate(items_bytes(entries.size() + 1) * 2);
  namespaces_.push_back(std::make_unique<Namespace>());
  namespaces_.back()->entries = std::move(entries);
  return {Value::Data(namespaces_.back().get()), true};
}

// value.name: a method or field, else an entry.
Value Interpreter::attribute(const Value& value, std::string_view name) {
  const bool internal = name.size() > 4 && name.starts_with("__") && name.ends_with("__");
  if (!internal) require_defined(value);
  if (auto method = find_method(value, name)) return std::move(*method);
  if (value.is<Namespace*>()) {
    if (const Value* found = std::get<Namespace*>(value.data)->find(name)) return *found;
  } else if (value.is_dict()) {
    if (const Value* found = value.as_dict().find(name)) return *found;
  } else if (const auto* object = std::get_if<std::shared_ptr<Object>>(&value.data)) {
    Value found;
    if ((*object)->attribute(*this, name, &found)) return found;
  }
  return Value::undefined(concat("'", describe_type(value), "' has no attribute '", name, "'"));
}

// value[key]: an entry, else a method or field.
Value Interpreter::item(const Value& value, const Value& key) {
  Value found = get_element(budget_, value, key);
  if (!found.is_undefined() || !key.is_text()) return found;
  if (value.is_dict() && value.as_dict().find(key) != nullptr) return found;
  return attribute(value, key.bytes());
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  require_defined(callee);
  const auto* object = std::get_if<std::shared_ptr<Object>>(&callee.data);
  if (object == nullptr) fail("'", type_name(callee), "' object is not callable");
  const std::shared_ptr<Object> alive = *object;
  return alive->call(*this, arguments);
}

Value Interpreter::eval(const Expr& expr) {
  const Nested nested(depth_left_);
  budget_.spend(1);
  position_ = expr.position;
  return std::visit([this](const auto& node) { return visit(node); }, expr.node);
}

Value Interpreter::visit(const Name& node) {
  if (const Value* found = scope_->find(node.id)) return *found;
  return undefined_name(node.id);
}

const Value& Interpreter::undefined_name(int id) {
  const auto at = static_cast<size_t>(id);
  if (undefined_names_.empty()) undefined_names_.resize(template_.names.size());
  if (!undefined_names_[at].is_undefined()) {
    undefined_names_[at] = Value::undefined(concat("'", template_.names[at], "' is undefined"));
  }
  return undefined_names_[at];
}

Value Interpreter::visit(const SequenceLiteral& node) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExprPtr& item : node.items) items.push_back(eval(*item));
  return list(std::move(items), true, node.tuple);
}

Value Interpreter::visit(const DictLiteral& node) {
  budget_.allocate(items_bytes(2 * node.entries.size()) + static_cast<int64_t>(sizeof(Dict)));
  auto dict = std::make_shared<Dict>();
  for (const auto& [key, value] : node.entries) {
    Value evaluated = eval(*key);
    dict->set(std::move(evaluated), eval(*value));
  }
  return make_dict(std::move(dict), true);
}

Value Interpreter::visit(const Not& node) { return Value::boolean(!truthy(eval(*node.operand))); }

Value Interpreter::visit(const Sign& node) { return negate(eval(*node.operand), node.negative); }

Value Interpreter::visit(const Operations& node) {
  Value value = eval(*node.first);
  for (const auto& step : node.steps) {
    const Value right = eval(*step.right);
    position_ = step.position;
    value = arithmetic(budget_, step.op, value, right);
  }
  return value;
}

Value Interpreter::visit(const Concatenation& node) {
  Text out;
  for (const ExprPtr& part : node.parts) {
    const Text text = str(eval(*part));
    budget_.allocate(static_cast<int64_t>(text.size()));
    out.append(text);
  }
  return Value::text(std::move(out));
}

Value Interpreter::visit(const Logic& node) {
  Value value;
  for (const ExprPtr& operand : node.operands) {
    value = eval(*operand);
    if (truthy(value) == node.any) break;
  }
  return value;
}

Value Interpreter::visit(const Comparison& node) {
  Value left = eval(*node.first);
  bool holds = true;
  for (const auto& [relation, expr] : node.steps) {
    Value right = eval(*expr);
    holds = compare(budget_, relation, left, right);
    if (!holds) break;
    left = std::move(right);
  }
  return Value::boolean(holds);
}

Value Interpreter::visit(const Conditional& node) {
  if (truthy(eval(*node.condition))) return eval(*node.yes);
  if (node.no) return eval(*node.no);
  return Value::undefined("the inline if-expression evaluated to false and no else was given");
}

Value Interpreter::visit(const Postfix& node) { return apply(node.steps, eval(*node.base)); }

Value Interpreter::apply(const std::vector<PostfixStep>& steps, Value value) {
  for (const PostfixStep& next : steps) {
    budget_.spend(1);
    position_ = next.position;
    value = std::visit([&](const auto& node) { return step(node, value); }, next.step);
  }
  return value;
}

Value Interpreter::step(const Attribute& node, const Value& value) {
  return attribute(value, node.name);
}

Value Interpreter::step(const Subscript& node, const Value& value) {
  const Position here = position_;
  const Value key = eval(*node.index);
  position_ = here;
  return item(value, key);
}

Value Interpreter::step(const Slice& node, const Value& value) {
  std::vector<Value> bounds;
  for (const ExprPtr* bound : {&node.start, &node.stop, &node.step}) {
    bounds.push_back(*bound ? eval(**bound) : Value());
  }
  return get_slice(budget_, value, &bounds[0], &bounds[1], &bounds[2]);
}

Value Interpreter::step(const Call& node, const Value& value) {
  const Position here = position_;
  Arguments evaluated = arguments(node.arguments);
  position_ = here;
  return call(value, evaluated);
}

Value Interpreter::step(const FilterStep& node, const Value& value) {
  const Position here = position_;
  Arguments evaluated = arguments(node.arguments);
  position_ = here;
  require(node.filter != nullptr, "no filter named '", node.name, "'");
  return node.filter(*this, value, evaluated);
}

Value Interpreter::step(const TestStep& node, const Value& value) {
  const Position here = position_;
  Arguments evaluated = arguments(node.arguments);
  position_ = here;
  require(node.test != nullptr, "no test named '", node.name, "'");
  return Value::boolean(node.test(*this, value, evaluated) != node.negated);
}

Arguments Interpreter::arguments(const CallArguments& node) {
  Arguments out;
  out.positional.reserve(node.positional.size());
  for (const ExprPtr& argument : node.positional) out.positional.push_back(eval(*argument));
  for (const auto& [name, argument] : node.named) out.named.emplace_back(name, eval(*argument));
  if (node.star) {
    const std::vector<Value> more = iterate(budget_, eval(*node.star));
    out.positional.insert(out.positional.end(), more.begin(), more.end());
  }
  if (node.star_star) add_named(out, eval(*node.star_star));
  return out;
}

}  // namespace longspur::io::chat
