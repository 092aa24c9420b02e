// Attributes of macros and loops.
#include "io/chat/objects.h"

#include <algorithm>

namespace longspur::io::chat {
namespace {

// loop.cycle and loop.changed; keeps the loop alive.
struct LoopMethod : Object {
  LoopMethod(std::shared_ptr<LoopState> its_loop, bool is_cycle)
      : loop(std::move(its_loop)), cycle(is_cycle) {
    depth = loop->depth + 1;
  }
  const char* type() const override { return "method"; }
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    if (!cycle) return Value::boolean(loop->changed(interpreter, arguments.positional));
    require(!arguments.positional.empty(), "no items for cycling given");
    return arguments.positional[static_cast<size_t>(loop->index0()) % arguments.positional.size()];
  }
  std::shared_ptr<LoopState> loop;
  bool cycle;
};

}  // namespace

bool Macro::attribute(Interpreter& interpreter, std::string_view name, Value* out) {
  if (name == "name") {
    *out = Value::text(definition.name, true);
  } else if (name == "arguments") {
    std::vector<Value> names;
    for (const auto& parameter : definition.signature.parameters) {
      names.push_back(Value::text(parameter.name, true));
    }
    *out = interpreter.list(std::move(names), true, true);
  } else if (name == "catch_kwargs" || name == "catch_varargs" || name == "caller") {
    *out = Value::boolean(name == "caller"         ? definition.signature.uses_caller
                          : name == "catch_kwargs" ? definition.signature.uses_kwargs
                                                   : definition.signature.uses_varargs);
  } else {
    return false;
  }
  return true;
}

LoopState::LoopState(Budget& budget, const For& node, Scope* scope, const Value& items, int depth)
    : node_(node), scope_(scope), loop_depth_(depth) {
  if (const auto* stream = std::get_if<std::shared_ptr<Stream>>(&items.data)) {
    stream_ = *stream;
  } else if (const auto* range = std::get_if<std::shared_ptr<const Range>>(&items.data)) {
    range_ = *range;
  } else {
    items_ = iterate(budget, items);
  }
  this->depth = depth_of(items) + 1;
}

std::optional<Value> LoopState::next() {
  if (stream_) return stream_->pull();
  if (range_) {
    const auto at = static_cast<Integer>(next_++);
    return at < range_->size() ? std::optional(Value::integer(range_->at(at))) : std::nullopt;
  }
  return next_ < items_.size() ? std::optional(items_[next_++]) : std::nullopt;
}

std::optional<Value> LoopState::fetch() {
  while (std::optional<Value> item = next()) {
    if (!accepts_ || accepts_(*item)) return item;
  }
  return std::nullopt;
}

const std::optional<Value>& LoopState::peek() {
  if (!peeked_) {
    after_ = fetch();
    peeked_ = after_.has_value();  // jinja2 asks again at the end; nothing comes
  }
  return after_;
}

std::optional<Value> LoopState::advance() {
  std::optional<Value> item = peeked_ ? std::move(after_) : fetch();
  peeked_ = false;
  after_.reset();
  if (!item) return item;
  ++index0_;
  before_ = std::exchange(current_, *item);
  return item;
}

int64_t LoopState::length() {
  if (length_ >= 0) return length_;
  if (accepts_ || stream_) {
    std::vector<Value> rest;
    while (std::optional<Value> item = fetch()) rest.push_back(std::move(*item));
    items_ = std::move(rest);
    next_ = 0;
    accepts_ = nullptr;
    stream_.reset();
    range_.reset();
    length_ = static_cast<int64_t>(items_.size()) + index0_ + 1 + (peeked_ ? 1 : 0);
  } else {
    length_ = static_cast<int64_t>(range_ ? range_->size() : static_cast<Integer>(items_.size()));
  }
  return length_;
}

void LoopState::finish() {
  last_changed_.reset();
  accepts_ = nullptr;
}

bool LoopState::changed(Interpreter& interpreter, const std::vector<Value>& values) {
  const auto same = [&](const Value& a, const Value& b) {
    return equal(interpreter.budget(), a, b);
  };
  if (last_changed_ && std::equal(last_changed_->begin(), last_changed_->end(), values.begin(),
                                  values.end(), same)) {
    return false;
  }
  last_changed_ = values;
  return true;
}

Value LoopState::call(Interpreter& interpreter, Arguments& arguments) {
  require(node_.recursive, "the loop must have the 'recursive' marker to be called recursively");
  require(arguments.positional.size() == 1 && arguments.named.empty(),
          "loop() takes exactly one argument");
  return Value::text(interpreter.run_loop(node_, arguments.positional[0], scope_, loop_depth_ + 1));
}

bool LoopState::attribute(Interpreter&, std::string_view name, Value* out) {
  const auto integer = [out](int64_t value) {
    *out = Value::integer(value);
    return true;
  };
  if (name == "index") return integer(index0_ + 1);
  if (name == "index0") return integer(index0_);
  if (name == "length") return integer(length());
  if (name == "revindex") return integer(length() - index0_);
  if (name == "revindex0") return integer(length() - index0_ - 1);
  if (name == "depth") return integer(loop_depth_ + 1);
  if (name == "depth0") return integer(loop_depth_);
  if (name == "first") {
    *out = Value::boolean(index0_ == 0);
  } else if (name == "last") {
    *out = Value::boolean(!peek());
  } else if (name == "previtem") {
    *out = index0_ == 0 ? Value::undefined("there is no previous item") : before_;
  } else if (name == "nextitem") {
    *out = peek() ? *peek() : Value::undefined("there is no next item");
  } else if (name == "cycle" || name == "changed") {
    *out = make_object(std::make_shared<LoopMethod>(shared_from_this(), name == "cycle"));
  } else {
    return false;
  }
  return true;
}

}  // namespace longspur::io::chat
