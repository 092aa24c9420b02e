// Runs a parsed template once.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/chat/ast.h"
#include "io/chat/budget.h"
#include "io/chat/chat_template.h"
#include "io/chat/format.h"
#include "io/chat/operators.h"

namespace longspur::io::chat {

// Variables of one block. Scopes that a macro can still see outlive their block.
struct Scope {
  Scope* parent = nullptr;
  bool captured = false;
  std::vector<std::pair<int, Value>> variables;

  Value* find(int id);
  void set(int id, Value value);
};

enum class Flow : uint8_t { normal, break_, continue_ };

class LoopState;

class Interpreter {
 public:
  Interpreter(const Template& source, const ChatTemplateLimits& limits, std::time_t now);

  // Variables that the template sees from the start.
  void define(const std::string& name, Value value);
  Text run();

  // The node that was reached last, for messages.
  Position position() const { return position_; }

  // What builtins use.
  Budget& budget() { return budget_; }
  std::time_t now() const { return now_; }
  Text str(const Value& value) { return to_text(budget_, value); }
  Value attribute(const Value& value, std::string_view name);
  Value item(const Value& value, const Value& key);
  Value call(const Value& callee, Arguments& arguments);
  Value make_namespace(std::vector<std::pair<std::string, Value>> entries);
  Value list(std::vector<Value> items, bool special, bool tuple = false);

  // What objects use.
  Value run_macro(const MacroDefinition& macro, Scope* scope, Arguments& arguments);
  Text run_loop(const For& loop, const Value& items, Scope* scope, int depth);

 private:
  class Depth;
  class Block;
  class Capture;

  Value eval(const Expr& expr);
  Value visit(const Constant& node) { return node.value; }
  Value visit(const Name& node);
  Value visit(const SequenceLiteral& node);
  Value visit(const DictLiteral& node);
  Value visit(const Not& node);
  Value visit(const Sign& node);
  Value visit(const Operations& node);
  Value visit(const Concatenation& node);
  Value visit(const Logic& node);
  Value visit(const Comparison& node);
  Value visit(const Conditional& node);
  Value visit(const Postfix& node);
  Value apply(const std::vector<PostfixStep>& steps, Value value);
  Value step(const Attribute& node, const Value& value);
  Value step(const Subscript& node, const Value& value);
  Value step(const Slice& node, const Value& value);
  Value step(const Call& node, const Value& value);
  Value step(const FilterStep& node, const Value& value);
  Value step(const TestStep& node, const Value& value);
  Arguments arguments(const CallArguments& node);

  Flow exec(const Body& body);
  Flow run(const Data& node);
  Flow run(const Output& node);
  Flow run(const If& node);
  Flow run(const For& node);
  Flow run(const Set& node);
  Flow run(const SetBlock& node);
  Flow run(const With& node);
  Flow run(const MacroDefinition& node);
  Flow run(const CallBlock& node);
  Flow run(const FilterBlock& node);
  Flow run(const Generation& node);
  Flow run(const Break&) { return Flow::break_; }
  Flow run(const Continue&) { return Flow::continue_; }
  Flow loop(const For& node, const Value& items, int depth);
  bool accepts(const For& node, const Value& item);
  Text captured(const Body& body, const std::vector<int>& hidden);
  void hide(const std::vector<int>& ids);
  const Value& undefined_name(int id);
  Value filtered(const ExprPtr& filters, Text text);
  void bind_parameters(const Signature& signature, Arguments& arguments, const std::string& name);
  void write(const Text& text);
  void assign(const Target& target, Value value);
  Scope* open_scope(Scope* parent);
  void close_scope(Scope* scope);
  void capture_scopes();

  const Template& template_;
  Budget budget_;
  int64_t max_output_;
  int depth_left_;
  int calls_left_;
  std::time_t now_;
  Position position_;
  Text* out_ = nullptr;
  Scope* scope_ = nullptr;
  std::vector<std::unique_ptr<Scope>> scopes_;
  std::vector<Scope*> free_scopes_;
  std::vector<Value> undefined_names_;  // by id, made when they are needed
  std::vector<std::unique_ptr<Namespace>> namespaces_;
};

}  // namespace longspur::io::chat
