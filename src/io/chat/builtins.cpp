// Globals, and the one place that knows all filters.
#include "io/chat/builtins.h"

#include <algorithm>

#include "io/chat/arguments.h"
#include "io/chat/filters.h"
#include "io/chat/objects.h"
#include "io/chat/strftime.h"

namespace longspur::io::chat {
namespace {

constexpr Integer kMaxRange = 100'000;  // as jinja2's sandbox
constexpr size_t kMaxTimeFormat = 10'000;

Value range(Interpreter&, Arguments& given) {
  const Parameters p("range", given, {"start", "stop", "step"}, 1);
  const auto bound = [&p](size_t i, Integer fallback) {
    require(!p.has(i) || !p.at(i).is_none(), "range(): found None, expected an integer");
    const Integer value = p.integer(i, fallback);
    require(value >= INT64_MIN && value <= INT64_MAX, "range(): an integer is too large");
    return value;
  };
  Range out;
  if (p.has(1)) {
    out = {bound(0, 0), bound(1, 0), bound(2, 1)};
  } else {
    out.stop = bound(0, 0);
  }
  require(out.step != 0, "range() arg 3 must not be zero");
  require(out.size() <= kMaxRange, "range(): found ", integer_text(out.size()),
          " items, expected at most ", integer_text(kMaxRange));
  return {Value::Data(std::make_shared<const Range>(out)), true};
}

// dict(mapping or pairs, **more).
std::shared_ptr<Dict> dict_of(Interpreter& in, Arguments& given) {
  require(given.positional.size() <= 1, "dict expected at most 1 argument, got ",
          given.positional.size());
  auto out = std::make_shared<Dict>();
  if (!given.positional.empty()) {
    const Value& source = given.positional[0];
    require_defined(source);
    if (source.is_dict()) {
      in.budget().allocate(2 * items_bytes(source.as_dict().entries.size()));
      *out = source.as_dict();
    } else {
      for (const Value& pair : iterate(in.budget(), source)) {
        in.budget().spend(1);
        std::vector<Value> both = iterate(in.budget(), pair);
        require(both.size() == 2, "dictionary update sequence element has length ", both.size(),
                "; 2 is required");
        out->set(std::move(both[0]), std::move(both[1]));
      }
    }
  }
  for (auto& [name, value] : given.named) out->set(Value::text(name, true), std::move(value));
  return out;
}

Value dict(Interpreter& in, Arguments& given) { return make_dict(dict_of(in, given), true); }

Value namespace_(Interpreter& in, Arguments& given) {
  std::vector<std::pair<std::string, Value>> entries;
  const std::shared_ptr<Dict> source = dict_of(in, given);
  for (auto& [key, value] : source->entries) {
    if (!key.is_text()) continue;  // nothing can ask for it
    require(!key.bytes().starts_with('_'), "namespace attribute '", key.bytes(),
            "' must not start with an underscore");
    entries.emplace_back(key.bytes(), std::move(value));
  }
  return in.make_namespace(std::move(entries));
}

Value raise_exception(Interpreter& in, Arguments& given) {
  const Parameters p("raise_exception", given, {"message"}, 1);
  throw Error(in.str(p.at(0)).bytes());
}

Value strftime_now(Interpreter& in, Arguments& given) {
  const Parameters p("strftime_now", given, {"format"}, 1);
  const Text& format = p.text(0);
  require(format.size() <= kMaxTimeFormat, "strftime_now(): the format is too long");
  std::string shown = format_time(format.bytes(), in.now());
  in.budget().allocate(static_cast<int64_t>(shown.size()));
  return Value::text(std::move(shown), format.all_special());
}

// cycler("a", "b"): .next(), .reset(), .current.
struct Cycler : Object, std::enable_shared_from_this<Cycler> {
  struct Step : Object {
    Step(std::shared_ptr<Cycler> its_cycler, bool is_reset)
        : cycler(std::move(its_cycler)), reset(is_reset) {
      depth = cycler->depth + 1;
    }
    Value call(Interpreter&, Arguments&) override {
      if (reset) {
        cycler->at = 0;
        return {};
      }
      const Value item = cycler->items[cycler->at];
      cycler->at = (cycler->at + 1) % cycler->items.size();
      return item;
    }
    std::shared_ptr<Cycler> cycler;
    bool reset;
  };

  const char* type() const override { return "Cycler"; }
  bool callable() const override { return false; }
  bool attribute(Interpreter&, std::string_view name, Value* out) override {
    if (name == "current") {
      *out = items[at];
    } else if (name == "next" || name == "reset") {
      *out = make_object(std::make_shared<Step>(shared_from_this(), name == "reset"));
    } else {
      return false;
    }
    return true;
  }
  std::vector<Value> items;
  size_t at = 0;
};

Value cycler(Interpreter&, Arguments& given) {
  require(!given.positional.empty(), "cycler(): at least one item has to be provided");
  auto out = std::make_shared<Cycler>();
  for (const Value& item : given.positional) out->depth = std::max(out->depth, depth_of(item) + 1);
  out->items = std::move(given.positional);
  return make_object(std::move(out));
}

// joiner(", "): nothing the first time, then the separator.
struct Joiner : Object {
  const char* type() const override { return "Joiner"; }
  Value call(Interpreter&, Arguments&) override {
    if (std::exchange(used, true)) return separator;
    return Value::text("", true);
  }
  Value separator;
  bool used = false;
};

Value joiner(Interpreter&, Arguments& given) {
  const Parameters p("joiner", given, {"sep"});
  auto out = std::make_shared<Joiner>();
  out->separator = p.or_else(0, Value::text(", ", true));
  out->depth = depth_of(out->separator) + 1;
  return make_object(std::move(out));
}

}  // namespace

std::optional<Value> find_global(std::string_view name) {
  static const std::unordered_map<std::string_view, Function> kGlobals = {
      {"cycler", cycler},
      {"dict", dict},
      {"joiner", joiner},
      {"namespace", namespace_},
      {"raise_exception", raise_exception},
      {"range", range},
      {"strftime_now", strftime_now}};
  const auto found = kGlobals.find(name);
  if (found == kGlobals.end()) return std::nullopt;
  return make_object(std::make_shared<PlainFunction>(found->first.data(), found->second));
}

Filter find_filter(std::string_view name) {
  for (const FilterTable* table :
       {&text_filters(), &sequence_filters(), &selection_filters(), &number_filters()}) {
    if (const auto found = table->find(name); found != table->end()) return found->second;
  }
  return nullptr;
}

}  // namespace longspur::io::chat
