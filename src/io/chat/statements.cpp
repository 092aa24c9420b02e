// Statements, scopes and macros.
#include <algorithm>

#include "io/chat/interpreter.h"
#include "io/chat/nesting.h"
#include "io/chat/objects.h"

namespace longspur::io::chat {
namespace {

constexpr int64_t kScopeBytes = 256;  // what a scope that is kept costs, roughly

}  // namespace

// A scope of its own while it lives.
class Interpreter::Block {
 public:
  Block(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter), outer_(interpreter.scope_) {
    interpreter.scope_ = interpreter.open_scope(parent);
  }
  explicit Block(Interpreter& interpreter) : Block(interpreter, interpreter.scope_) {}
  ~Block() {
    interpreter_.close_scope(interpreter_.scope_);
    interpreter_.scope_ = outer_;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

 private:
  Interpreter& interpreter_;
  Scope* outer_;
};

// Sends what is written to a text while it lives.
class Interpreter::Capture {
 public:
  Capture(Interpreter& interpreter, Text& text)
      : interpreter_(interpreter), outer_(std::exchange(interpreter.out_, &text)) {}
  ~Capture() { interpreter_.out_ = outer_; }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

 private:
  Interpreter& interpreter_;
  Text* outer_;
};

Scope* Interpreter::open_scope(Scope* parent) {
  if (free_scopes_.empty()) {
    scopes_.push_back(std::make_unique<Scope>());
    free_scopes_.push_back(scopes_.back().get());
  }
  Scope* scope = free_scopes_.back();
  free_scopes_.pop_back();
  scope->parent = parent;
  return scope;
}

void Interpreter::close_scope(Scope* scope) {
  if (scope->captured) return;
  scope->variables.clear();
  free_scopes_.push_back(scope);
}

// A macro, or a loop that can be called, may outlive the blocks around it.
void Interpreter::capture_scopes() {
  for (Scope* scope = scope_; scope != nullptr && !scope->captured; scope = scope->parent) {
    budget_.allocate(kScopeBytes);
    scope->captured = true;
  }
}

void Interpreter::hide(const std::vector<int>& ids) {
  for (const int id : ids) scope_->set(id, undefined_name(id));
}

void Interpreter::write(const Text& text) {
  budget_.allocate(static_cast<int64_t>(text.size()));
  require(static_cast<int64_t>(out_->size() + text.size()) <= max_output_,
          "the template writes more than ", max_output_, " bytes");
  out_->append(text);
}

Flow Interpreter::exec(const Body& body) {
  const Nested nested(depth_left_);
  for (const auto& statement : body) {
    budget_.spend(1);
    position_ = statement->position;
    const Flow flow = std::visit([this](const auto& node) { return run(node); }, statement->node);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Flow Interpreter::run(const Data& node) {
  write(*node.text);
  return Flow::normal;
}

Flow Interpreter::run(const Output& node) {
  for (const ExprPtr& expr : node.values) {
    const Value value = eval(*expr);
    if (value.is_text()) {
      write(value.as_text());
    } else {
      write(str(value));
    }
  }
  return Flow::normal;
}

Flow Interpreter::run(const If& node) {
  for (const auto& [condition, body] : node.branches) {
    if (truthy(eval(*condition))) return exec(body);
  }
  return exec(node.otherwise);
}

bool Interpreter::accepts(const For& node, const Value& item) {
  const Block block(*this);
  assign(node.target, item);
  return truthy(eval(*node.condition));
}

Flow Interpreter::run(const For& node) { return loop(node, eval(*node.items), 0); }

Flow Interpreter::loop(const For& node, const Value& items, int depth) {
  if (node.recursive) capture_scopes();
  const auto state = std::make_shared<LoopState>(budget_, node, scope_, items, depth);
  Scope* const outside = scope_;
  if (node.condition) {
    state->set_condition([this, &node, outside](const Value& item) {
      Scope* const inside = std::exchange(scope_, outside);
      const bool accepted = accepts(node, item);
      scope_ = inside;
      return accepted;
    });
  }
  struct Finish {
    LoopState& state;
    ~Finish() { state.finish(); }
  } const finish{*state};
  bool completed = false;  // as jinja2, an iteration that is cut short does not count for else
  Flow flow = Flow::normal;
  while (flow != Flow::break_) {
    budget_.iterate();
    std::optional<Value> item = state->advance();
    if (!item) break;
    const Block block(*this);
    hide(node.hidden);
    if (node.uses_loop) {
      scope_->set(template_.loop_id, {Value::Data(std::shared_ptr<Object>(state)), true});
    }
    assign(node.target, std::move(*item));
    flow = exec(node.body);
    completed = completed || flow == Flow::normal;
  }
  if (completed) return Flow::normal;
  const Block block(*this);
  hide(node.hidden_otherwise);
  return exec(node.otherwise);
}

Text Interpreter::run_loop(const For& node, const Value& items, Scope* scope, int depth) {
  const Nested nested(calls_left_);
  Text out;
  const Capture capture(*this, out);
  const Block block(*this, scope);
  loop(node, items, depth);
  return out;
}

void Interpreter::assign(const Target& target, Value value) {
  if (const auto* name = std::get_if<NameTarget>(&target.node)) {
    scope_->set(name->id, std::move(value));
    return;
  }
  if (const auto* entry = std::get_if<AttributeTarget>(&target.node)) {
    const Value* found = scope_->find(entry->id);
    require(found != nullptr && found->is<Namespace*>(),
            "cannot assign attribute on non-namespace object");
    require(entry->attribute[0] != '_', "namespace attribute '", entry->attribute,
            "' must not start with an underscore");
    Namespace& space = *std::get<Namespace*>(found->data);
    if (Value* old = space.find(entry->attribute)) {
      *old = std::move(value);
    } else {
      space.entries.emplace_back(entry->attribute, std::move(value));
    }
    return;
  }
  const auto& targets = std::get<TupleTarget>(target.node).items;
  std::vector<Value> items = iterate(budget_, value);
  require(items.size() <= targets.size(), "too many values to unpack (expected ", targets.size(),
          ")");
  require(items.size() == targets.size(), "not enough values to unpack (expected ", targets.size(),
          ", got ", items.size(), ")");
  for (size_t i = 0; i < items.size(); ++i) assign(targets[i], std::move(items[i]));
}

Flow Interpreter::run(const Set& node) {
  assign(node.target, eval(*node.value));
  return Flow::normal;
}

Text Interpreter::captured(const Body& body, const std::vector<int>& hidden) {
  Text out;
  const Capture capture(*this, out);
  const Block block(*this);
  hide(hidden);
  exec(body);
  return out;
}

Value Interpreter::filtered(const ExprPtr& filters, Text text) {
  Value value = Value::text(std::move(text));
  return filters ? apply(std::get<Postfix>(filters->node).steps, std::move(value)) : value;
}

Flow Interpreter::run(const SetBlock& node) {
  assign(node.target, filtered(node.filters, captured(node.body, node.hidden)));
  return Flow::normal;
}

Flow Interpreter::run(const FilterBlock& node) {
  write(str(filtered(node.filters, captured(node.body, node.hidden))));
  return Flow::normal;
}

Flow Interpreter::run(const Generation& node) {
  const Block block(*this);
  hide(node.hidden);
  return exec(node.body);
}

Flow Interpreter::run(const With& node) {
  std::vector<Value> values;
  for (const auto& entry : node.values) values.push_back(eval(*entry.second));
  const Block block(*this);
  hide(node.hidden);
  for (size_t i = 0; i < values.size(); ++i) assign(node.values[i].first, std::move(values[i]));
  return exec(node.body);
}

Flow Interpreter::run(const MacroDefinition& node) {
  capture_scopes();
  scope_->set(node.id, make_object(std::make_shared<Macro>(node, scope_)));
  return Flow::normal;
}

Flow Interpreter::run(const CallBlock& node) {
  capture_scopes();
  const auto& chain = std::get<Postfix>(node.call->node);
  Value callee = eval(*chain.base);
  for (size_t i = 0; i + 1 < chain.steps.size(); ++i) {
    callee = std::visit([&](const auto& one) { return step(one, callee); }, chain.steps[i].step);
  }
  Arguments given = arguments(std::get<chat::Call>(chain.steps.back().step).arguments);
  given.named.emplace_back("caller", make_object(std::make_shared<Macro>(node.caller, scope_)));
  write(str(call(callee, given)));
  return Flow::normal;
}

void Interpreter::bind_parameters(const Signature& signature,
                                  Arguments& given,
                                  const std::string& name) {
  const size_t count = std::min(given.positional.size(), signature.parameters.size());
  const auto take = [&given](std::string_view wanted) -> std::optional<Value> {
    for (auto it = given.named.begin(); it != given.named.end(); ++it) {
      if (it->first != wanted) continue;
      Value value = std::move(it->second);
      given.named.erase(it);
      return value;
    }
    return std::nullopt;
  };
  bool has_caller = false;
  for (size_t i = 0; i < signature.parameters.size(); ++i) {
    const auto& parameter = signature.parameters[i];
    has_caller = has_caller || parameter.name == "caller";
    std::optional<Value> value = i < count ? std::move(given.positional[i]) : take(parameter.name);
    if (!value && parameter.fallback) value = eval(*parameter.fallback);
    if (!value) {
      value = Value::undefined(concat("parameter '", parameter.name, "' was not provided"));
    }
    scope_->set(parameter.id, std::move(*value));
  }
  if (signature.uses_caller && !has_caller) {
    std::optional<Value> caller = take("caller");
    scope_->set(template_.caller_id,
                caller ? std::move(*caller) : Value::undefined("No caller defined"));
  }
  if (signature.uses_kwargs) {
    auto rest = std::make_shared<Dict>();
    for (auto& [key, value] : given.named) rest->set(Value::text(key, true), std::move(value));
    scope_->set(template_.kwargs_id, make_dict(std::move(rest), true));
  } else if (!given.named.empty()) {
    fail("macro '", name, "' takes no keyword argument '", given.named.front().first, "'");
  }
  if (signature.uses_varargs) {
    std::vector<Value> rest(given.positional.begin() + static_cast<ptrdiff_t>(count),
                            given.positional.end());
    scope_->set(template_.varargs_id, list(std::move(rest), true, true));
  } else if (given.positional.size() > signature.parameters.size()) {
    fail("macro '", name, "' takes not more than ", signature.parameters.size(), " argument(s)");
  }
}

Value Interpreter::run_macro(const MacroDefinition& macro, Scope* scope, Arguments& given) {
  const Nested nested(calls_left_);
  Text out;
  const Capture capture(*this, out);
  const Block block(*this, scope);
  hide(macro.hidden);
  bind_parameters(macro.signature, given, macro.name);
  exec(macro.body);
  return Value::text(std::move(out));
}

}  // namespace longspur::io::chat
