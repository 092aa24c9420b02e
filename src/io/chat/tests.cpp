// Tests: what may follow "is".
#include <unordered_map>

#include "io/chat/arguments.h"
#include "io/chat/builtins.h"
#include "io/chat/methods.h"

namespace longspur::io::chat {
namespace {

using Holds = bool (*)(const Value&);

template <Holds holds>
bool simple(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("test", given, {});
  return holds(value);
}

template <Relation relation>
bool related(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("comparison", given, {"other"}, 1);
  return compare(in.budget(), relation, value, p.at(0));
}

bool is_callable(const Value& value) {
  const auto* object = std::get_if<std::shared_ptr<Object>>(&value.data);
  return value.is_undefined() || (object != nullptr && (*object)->callable());
}

bool is_sequence(const Value& value) {
  return value.is_text() || value.is_sequence() || value.is_dict() || value.is_undefined() ||
         value.is<std::shared_ptr<const Range>>();
}

bool is_iterable(const Value& value) {
  return is_sequence(value) || value.is<std::shared_ptr<const View>>() ||
         value.is<std::shared_ptr<Stream>>();
}

Integer remainder(Interpreter& in, const Value& value, const Value& divisor) {
  const Value rest = arithmetic(in.budget(), Arithmetic::modulo, value, divisor);
  if (rest.is_integral()) return rest.as_integer();
  if (!rest.is_number()) return -1;  // a formatted string is no number
  const double real = rest.as_double();
  return real == 0 ? 0 : real == 1 ? 1 : -1;
}

bool odd(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("odd", given, {});
  return remainder(in, value, Value::integer(2)) == 1;
}
bool even(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("even", given, {});
  return remainder(in, value, Value::integer(2)) == 0;
}
bool divisible(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("divisibleby", given, {"num"}, 1);
  return remainder(in, value, p.at(0)) == 0;
}

bool in_test(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("in", given, {"seq"}, 1);
  return contains(in.budget(), p.at(0), value);
}

bool same_as(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("sameas", given, {"other"}, 1);
  const Value& other = p.at(0);
  if (value.data.index() != other.data.index()) return false;
  if (value.is<double>()) return value.as_double() == other.as_double();
  if (value.is_number() || value.is_none()) return equal_scalars(value, other);
  if (value.is_text()) return value.bytes() == other.bytes();
  if (value.is_sequence()) return &value.as_sequence() == &other.as_sequence();
  if (value.is_dict()) return &value.as_dict() == &other.as_dict();
  if (value.is<Namespace*>()) {
    return std::get<Namespace*>(value.data) == std::get<Namespace*>(other.data);
  }
  if (const auto* object = std::get_if<std::shared_ptr<Object>>(&value.data)) {
    return *object == std::get<std::shared_ptr<Object>>(other.data);
  }
  return false;
}

template <bool upper>
bool cased(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("case test", given, {});
  return all_cased(in.str(value).bytes(), upper);
}

template <bool filters>
bool known(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("test", given, {});
  require(is_hashable(value), "unhashable type: '", type_name(value), "'");
  if (!value.is_text()) return false;
  return filters ? find_filter(value.bytes()) != nullptr : find_test(value.bytes()) != nullptr;
}

bool is_true(const Value& value) { return value.is_bool() && truthy(value); }
bool is_false(const Value& value) { return value.is_bool() && !truthy(value); }
bool defined(const Value& value) { return !value.is_undefined(); }
bool undefined(const Value& value) { return value.is_undefined(); }
bool none(const Value& value) { return value.is_none(); }
bool boolean(const Value& value) { return value.is_bool(); }
bool integer(const Value& value) { return value.is<Integer>(); }
bool real(const Value& value) { return value.is<double>(); }
bool number(const Value& value) { return value.is_number(); }
bool string(const Value& value) { return value.is_text(); }
bool mapping(const Value& value) { return value.is_dict(); }
bool escaped(const Value& value) { return value.markup; }

}  // namespace

Test find_test(std::string_view name) {
  static const std::unordered_map<std::string_view, Test> kTests = {
      {"!=", related<Relation::ne>},
      {"<", related<Relation::lt>},
      {"<=", related<Relation::le>},
      {"==", related<Relation::eq>},
      {">", related<Relation::gt>},
      {">=", related<Relation::ge>},
      {"boolean", simple<boolean>},
      {"callable", simple<is_callable>},
      {"defined", simple<defined>},
      {"divisibleby", divisible},
      {"eq", related<Relation::eq>},
      {"equalto", related<Relation::eq>},
      {"escaped", simple<escaped>},
      {"even", even},
      {"false", simple<is_false>},
      {"filter", known<true>},
      {"float", simple<real>},
      {"ge", related<Relation::ge>},
      {"greaterthan", related<Relation::gt>},
      {"gt", related<Relation::gt>},
      {"in", in_test},
      {"integer", simple<integer>},
      {"iterable", simple<is_iterable>},
      {"le", related<Relation::le>},
      {"lessthan", related<Relation::lt>},
      {"lower", cased<false>},
      {"lt", related<Relation::lt>},
      {"mapping", simple<mapping>},
      {"ne", related<Relation::ne>},
      {"none", simple<none>},
      {"number", simple<number>},
      {"odd", odd},
      {"sameas", same_as},
      {"sequence", simple<is_sequence>},
      {"string", simple<string>},
      {"test", known<false>},
      {"true", simple<is_true>},
      {"undefined", simple<undefined>},
      {"upper", cased<true>}};
  const auto found = kTests.find(name);
  return found == kTests.end() ? nullptr : found->second;
}

}  // namespace longspur::io::chat
