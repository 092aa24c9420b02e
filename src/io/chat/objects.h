// Things with behaviour: macros, bound methods, plain functions and the loop variable.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "io/chat/interpreter.h"

namespace longspur::io::chat {

using Function = Value (*)(Interpreter&, Arguments&);
using Method = Value (*)(Interpreter&, const Value& receiver, Arguments&);

struct PlainFunction : Object {
  PlainFunction(const char* its_name, Function its_function)
      : name(its_name), function(its_function) {}
  std::string repr() const override { return concat("<function ", name, ">"); }
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return function(interpreter, arguments);
  }
  const char* name;
  Function function;
};

struct BoundMethod : Object {
  BoundMethod(Value its_receiver, Method its_method)
      : receiver(std::move(its_receiver)), method(its_method) {
    depth = depth_of(receiver) + 1;
  }
  const char* type() const override { return "builtin_function_or_method"; }
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return method(interpreter, receiver, arguments);
  }
  Value receiver;
  Method method;
};

struct Macro : Object {
  Macro(const MacroDefinition& its_definition, Scope* its_scope)
      : definition(its_definition), scope(its_scope) {}
  const char* type() const override { return "Macro"; }
  std::string repr() const override { return concat("<Macro '", definition.name, "'>"); }
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return interpreter.run_macro(definition, scope, arguments);
  }
  bool attribute(Interpreter& interpreter, std::string_view name, Value* out) override;
  const MacroDefinition& definition;
  Scope* scope;
};

// The loop variable. Items come one by one, because a loop's condition may depend on what the
// body did before; .last and .nextitem look one ahead, .length takes all.
class LoopState : public Object, public std::enable_shared_from_this<LoopState> {
 public:
  LoopState(Budget& budget, const For& node, Scope* scope, const Value& items, int depth);
  void set_condition(std::function<bool(const Value&)> accepts) { accepts_ = std::move(accepts); }
  std::optional<Value> advance();
  void finish();  // forgets what could refer back to the loop

  const char* type() const override { return "LoopContext"; }
  bool callable() const override { return node_.recursive; }
  Value call(Interpreter& interpreter, Arguments& arguments) override;
  bool attribute(Interpreter& interpreter, std::string_view name, Value* out) override;

  int64_t index0() const { return index0_; }
  bool changed(Interpreter& interpreter, const std::vector<Value>& values);

 private:
  std::optional<Value> fetch();
  std::optional<Value> next();
  const std::optional<Value>& peek();
  int64_t length();

  const For& node_;
  Scope* scope_;
  std::vector<Value> items_;
  size_t next_ = 0;
  std::shared_ptr<Stream> stream_;      // instead of items_
  std::shared_ptr<const Range> range_;  // instead of items_
  std::function<bool(const Value&)> accepts_;
  bool peeked_ = false;
  std::optional<Value> after_;
  Value before_, current_;
  int64_t index0_ = -1;
  int64_t length_ = -1;
  int loop_depth_;
  std::optional<std::vector<Value>> last_changed_;
};

}  // namespace longspur::io::chat
