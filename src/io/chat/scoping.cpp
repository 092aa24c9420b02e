// Walks each block once, branches of an if as overlays of it, then the blocks inside.
#include "io/chat/scoping.h"

#include <functional>
#include <unordered_map>
#include <unordered_set>

namespace longspur::io::chat {
namespace {

struct Symbols {
  const Symbols* base = nullptr;        // the same block before this branch of it
  const Symbols* outer = nullptr;       // the block around
  std::unordered_map<int, bool> known;  // name -> hidden until it is assigned
  std::unordered_set<int> stores;

  bool knows_here(int id) const {
    for (const Symbols* symbols = this; symbols != nullptr; symbols = symbols->base) {
      if (symbols->known.count(id) > 0) return true;
    }
    return false;
  }
  bool knows(int id) const {
    const Symbols* root = this;
    for (; root->base != nullptr; root = root->base) {
    }
    return knows_here(id) || (root->outer != nullptr && root->outer->knows(id));
  }
  bool known_outside(int id) const {
    const Symbols* root = this;
    for (; root->base != nullptr; root = root->base) {
    }
    return root->outer != nullptr && root->outer->knows(id);
  }
  bool stored(int id) const {
    for (const Symbols* symbols = this; symbols != nullptr; symbols = symbols->base) {
      if (symbols->stores.count(id) > 0) return true;
    }
    return false;
  }

  void load(int id) {
    if (!knows(id)) known[id] = false;
  }
  void store(int id) {
    stores.insert(id);
    if (!knows_here(id)) known[id] = !known_outside(id);
  }
  void declare(int id) {
    stores.insert(id);
    known[id] = false;
  }
};

// One block: its own statements and expressions; blocks inside are put off.
class Block {
 public:
  Block(Symbols& symbols, int loop_id) : symbols_(&symbols), loop_id_(loop_id) {}

  void body(Body& statements) {
    for (auto& statement : statements) std::visit(*this, statement->node);
  }
  void expression(const ExprPtr& expr) {
    if (expr) std::visit(*this, expr->node);
  }
  void declare(const Target& target) { assign(target, &Symbols::declare); }

  // The blocks inside, now that this one is known in full.
  void inside() {
    for (const auto& later : later_) later();
  }

  void operator()(const Constant&) {}
  void operator()(const Name& node) { symbols_->load(node.id); }
  void operator()(const SequenceLiteral& node) {
    for (const ExprPtr& item : node.items) expression(item);
  }
  void operator()(const DictLiteral& node) {
    for (const auto& [key, value] : node.entries) {
      expression(key);
      expression(value);
    }
  }
  void operator()(const Not& node) { expression(node.operand); }
  void operator()(const Sign& node) { expression(node.operand); }
  void operator()(const Operations& node) {
    expression(node.first);
    for (const auto& step : node.steps) expression(step.right);
  }
  void operator()(const Concatenation& node) {
    for (const ExprPtr& part : node.parts) expression(part);
  }
  void operator()(const Logic& node) {
    for (const ExprPtr& operand : node.operands) expression(operand);
  }
  void operator()(const Comparison& node) {
    expression(node.first);
    for (const auto& step : node.steps) expression(step.second);
  }
  void operator()(const Conditional& node) {
    expression(node.condition);
    expression(node.yes);
    expression(node.no);
  }
  void operator()(const Postfix& node) {
    expression(node.base);
    for (const PostfixStep& step : node.steps) std::visit(*this, step.step);
  }

  void operator()(const Attribute&) {}
  void operator()(const Subscript& node) { expression(node.index); }
  void operator()(const Slice& node) {
    expression(node.start);
    expression(node.stop);
    expression(node.step);
  }
  void operator()(const Call& node) { arguments(node.arguments); }
  void operator()(const FilterStep& node) { arguments(node.arguments); }
  void operator()(const TestStep& node) { arguments(node.arguments); }

  void operator()(Data&) {}
  void operator()(Break&) {}
  void operator()(Continue&) {}
  void operator()(Output& node) {
    for (const ExprPtr& value : node.values) expression(value);
  }
  void operator()(Set& node) {
    expression(node.value);
    assign(node.target, &Symbols::store);
  }
  void operator()(If& node);
  void operator()(For& node);
  void operator()(SetBlock& node) {
    assign(node.target, &Symbols::store);
    put_off(node.hidden, [&node](Block& block) { block.body(node.body); });
  }
  void operator()(With& node) {
    for (const auto& entry : node.values) expression(entry.second);
    put_off(node.hidden, [&node](Block& block) {
      for (const auto& entry : node.values) block.declare(entry.first);
      block.body(node.body);
    });
  }
  void operator()(MacroDefinition& node) {
    symbols_->store(node.id);
    macro(node);
  }
  void operator()(CallBlock& node) {
    expression(node.call);
    macro(node.caller);
  }
  void operator()(FilterBlock& node) {
    expression(node.filters);
    put_off(node.hidden, [&node](Block& block) {
      block.expression(node.filters);
      block.body(node.body);
    });
  }
  void operator()(Generation& node) {
    put_off(node.hidden, [&node](Block& block) { block.body(node.body); });
  }

 private:
  void arguments(const CallArguments& given) {
    for (const ExprPtr& argument : given.positional) expression(argument);
    for (const auto& named : given.named) expression(named.second);
    expression(given.star);
    expression(given.star_star);
  }

  void assign(const Target& target, void (Symbols::*how)(int)) {
    if (const auto* name = std::get_if<NameTarget>(&target.node)) {
      (symbols_->*how)(name->id);
    } else if (const auto* entry = std::get_if<AttributeTarget>(&target.node)) {
      symbols_->load(entry->id);
    } else {
      for (const Target& item : std::get<TupleTarget>(target.node).items) assign(item, how);
    }
  }

  void macro(MacroDefinition& node) {
    put_off(node.hidden, [&node](Block& block) {
      for (const auto& parameter : node.signature.parameters) block.symbols_->declare(parameter.id);
      for (const auto& parameter : node.signature.parameters) block.expression(parameter.fallback);
      block.body(node.body);
    });
  }

  // A branch of an if; what it learns is merged when all branches are known.
  template <class Visit>
  Symbols branch(Visit visit) {
    Symbols out;
    out.base = symbols_;
    Symbols* const whole = std::exchange(symbols_, &out);
    visit();
    symbols_ = whole;
    return out;
  }

  void merge(std::initializer_list<const Symbols*> branches) {
    std::unordered_set<int> stores;
    for (const Symbols* branch : branches) {
      for (const int id : branch->stores) {
        if (!symbols_->stored(id)) stores.insert(id);
      }
    }
    for (const Symbols* branch : branches) {
      for (const auto& [id, hidden] : branch->known) symbols_->known[id] = hidden;
      symbols_->stores.insert(branch->stores.begin(), branch->stores.end());
    }
    for (const int id : stores) symbols_->known[id] = false;
  }

  template <class Visit>
  void put_off(std::vector<int>& hidden, Visit visit) {
    Symbols* whole = symbols_;
    while (whole->base != nullptr) whole = const_cast<Symbols*>(whole->base);
    later_.push_back([whole, &hidden, visit, loop_id = loop_id_] {
      Symbols symbols;
      symbols.outer = whole;
      Block block(symbols, loop_id);
      visit(block);
      for (const auto& [id, is_hidden] : symbols.known) {
        if (is_hidden) hidden.push_back(id);
      }
      block.inside();
    });
  }

  Symbols* symbols_;
  int loop_id_;
  std::vector<std::function<void()>> later_;
};

void Block::operator()(If& node) {
  expression(node.branches.front().first);
  std::vector<Symbols> branches;
  branches.push_back(branch([&] { body(node.branches.front().second); }));
  branches.push_back(branch([&] {
    for (size_t i = 1; i < node.branches.size(); ++i) {
      // Each elif is an if of its own, whose branches are merged before the next one.
      expression(node.branches[i].first);
      const Symbols inner = branch([&] { body(node.branches[i].second); });
      merge({&inner});
    }
  }));
  branches.push_back(branch([&] { body(node.otherwise); }));
  merge({&branches[0], &branches[1], &branches[2]});
}

void Block::operator()(For& node) {
  expression(node.items);
  put_off(node.hidden, [&node, loop_id = loop_id_](Block& block) {
    if (node.uses_loop) block.symbols_->declare(loop_id);
    block.declare(node.target);
    block.body(node.body);
  });
  put_off(node.hidden_otherwise, [&node](Block& block) { block.body(node.otherwise); });
}

}  // namespace

void find_hidden_names(Template& parsed) {
  Symbols symbols;
  Block block(symbols, parsed.loop_id);
  block.body(parsed.body);
  for (const auto& [id, is_hidden] : symbols.known) {
    if (is_hidden) parsed.hidden.push_back(id);
  }
  block.inside();
}

}  // namespace longspur::io::chat
