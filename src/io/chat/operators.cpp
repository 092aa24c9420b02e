// Arithmetic and comparison.
#include "io/chat/operators.h"

#include <algorithm>
#include <cmath>

#include "io/chat/format.h"
#include "io/chat/printf.h"

namespace longspur::io::chat {
namespace {

constexpr int64_t kBytesPerStep = 256;

constexpr const char* kSigns[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};

[[noreturn]] void unsupported(Arithmetic op, const Value& a, const Value& b) {
  fail("unsupported operand type(s) for ", kSigns[static_cast<int>(op)], ": '", type_name(a),
       "' and '", type_name(b), "'");
}

Integer floor_divide(Integer a, Integer b) {
  const Integer quotient = a / b;
  return (a % b != 0 && (a % b < 0) != (b < 0)) ? quotient - 1 : quotient;
}

Integer power(Integer base, Integer exponent) {
  Integer result = 1;
  bool overflow = false;
  while (exponent > 0 && !overflow) {
    if (exponent % 2 == 1) overflow = __builtin_mul_overflow(result, base, &result);
    exponent /= 2;
    if (exponent > 0) overflow = overflow || __builtin_mul_overflow(base, base, &base);
  }
  require(!overflow, "an integer of the template is too large");
  return result;
}

Value on_integers(Arithmetic op, Integer a, Integer b, bool special) {
  Integer result = 0;
  bool overflow = false;
  switch (op) {
    case Arithmetic::add:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Arithmetic::subtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Arithmetic::multiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case Arithmetic::divide:
      require(b != 0, "division by zero");
      return Value::real(static_cast<double>(a) / static_cast<double>(b), special);
    case Arithmetic::floor_divide:
    case Arithmetic::modulo:
      require(b != 0, "integer division or modulo by zero");
      if (b == -1) {  // the smallest integer has no opposite
        overflow = op == Arithmetic::floor_divide && __builtin_sub_overflow(Integer(0), a, &result);
        break;
      }
      result = op == Arithmetic::floor_divide ? floor_divide(a, b) : a - floor_divide(a, b) * b;
      break;
    case Arithmetic::power:
      if (b >= 0) {
        result = power(a, b);
        break;
      }
      require(a != 0, "0.0 cannot be raised to a negative power");
      return Value::real(std::pow(static_cast<double>(a), static_cast<double>(b)), special);
  }
  require(!overflow, "an integer of the template is too large");
  return Value::integer(result, special);
}

// Python's float modulo has the sign of the divisor.
double modulo(double a, double b) {
  double result = std::fmod(a, b);
  if (result != 0) {
    if ((b < 0) != (result < 0)) result += b;
  } else {
    result = std::copysign(0.0, b);
  }
  return result;
}

double floor_divide(double a, double b) {
  double quotient = (a - modulo(a, b)) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

double on_reals(Arithmetic op, double a, double b) {
  switch (op) {
    case Arithmetic::add:
      return a + b;
    case Arithmetic::subtract:
      return a - b;
    case Arithmetic::multiply:
      return a * b;
    case Arithmetic::divide:
      require(b != 0, "float division by zero");
      return a / b;
    case Arithmetic::floor_divide:
      require(b != 0, "float floor division by zero");
      return floor_divide(a, b);
    case Arithmetic::modulo:
      require(b != 0, "float modulo");
      return modulo(a, b);
    case Arithmetic::power:
      break;
  }
  require(a != 0 || b >= 0, "0.0 cannot be raised to a negative power");
  require(a >= 0 || std::floor(b) == b, "complex numbers are not supported");
  const double result = std::pow(a, b);
  require(!std::isinf(result) || std::isinf(a) || std::isinf(b), "numerical result out of range");
  return result;
}

Value repeat(Budget& budget, const Value& value, Integer count) {
  count = std::max<Integer>(count, 0);
  const auto size = value.is_text() ? value.bytes().size() : value.as_sequence().items.size();
  const auto unit = static_cast<Integer>(value.is_text() ? size : size * sizeof(Value));
  require(unit == 0 || count <= Integer(INT64_MAX) / unit, "the template needs too much memory");
  if (size == 0) count = 0;
  budget.allocate(static_cast<int64_t>(unit * count));
  if (value.is_text()) {
    Text out;
    out.append_times(value.as_text(), static_cast<size_t>(count));
    return Value::text(std::move(out), value.markup);
  }
  const Sequence& sequence = value.as_sequence();
  std::vector<Value> items;
  items.reserve(size * static_cast<size_t>(count));
  for (Integer i = 0; i < count; ++i) {
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return make_sequence(std::move(items), sequence.tuple, value.special);
}

Value add(Budget& budget, const Value& left, const Value& right) {
  if (left.is_text() && right.is_text()) {
    budget.allocate(static_cast<int64_t>(left.bytes().size() + right.bytes().size()));
    if (left.markup || right.markup) return add_markup(left, right);
    Text out;
    out.reserve(left.bytes().size() + right.bytes().size());
    out.append(left.as_text());
    out.append(right.as_text());
    return Value::text(std::move(out));
  }
  if (left.is_sequence() && right.is_sequence()) {
    const Sequence& a = left.as_sequence();
    const Sequence& b = right.as_sequence();
    if (a.tuple == b.tuple) {
      budget.allocate(items_bytes(a.items.size() + b.items.size()));
      std::vector<Value> items = a.items;
      items.insert(items.end(), b.items.begin(), b.items.end());
      return make_sequence(std::move(items), a.tuple, left.special && right.special);
    }
  }
  if (left.is_text()) {
    fail("can only concatenate str (not \"", type_name(right), "\") to str");
  }
  if (left.is_sequence()) {
    fail("can only concatenate ", type_name(left), " (not \"", type_name(right), "\") to ",
         type_name(left));
  }
  unsupported(Arithmetic::add, left, right);
}

bool order_matters(const Value& a, const Value& b) {
  return a.is_number() && b.is_number() && (a.is<double>() || b.is<double>());
}

}  // namespace

Value arithmetic(Budget& budget, Arithmetic op, const Value& left, const Value& right) {
  if (op == Arithmetic::modulo && left.is_text()) return percent_format(budget, left, right);
  require_defined(left);
  require_defined(right);
  if (left.is_number() && right.is_number()) {
    const bool special = left.special && right.special;
    if (order_matters(left, right)) {
      return Value::real(on_reals(op, left.as_double(), right.as_double()), special);
    }
    return on_integers(op, left.as_integer(), right.as_integer(), special);
  }
  if (op == Arithmetic::add) return add(budget, left, right);
  if (op == Arithmetic::multiply) {
    if ((left.is_text() || left.is_sequence()) && right.is_integral()) {
      return repeat(budget, left, right.as_integer());
    }
    if ((right.is_text() || right.is_sequence()) && left.is_integral()) {
      return repeat(budget, right, left.as_integer());
    }
  }
  unsupported(op, left, right);
}

Value negate(const Value& value, bool negative) {
  require_defined(value);
  if (value.is<double>()) {
    return Value::real(negative ? -value.as_double() : value.as_double(), value.special);
  }
  if (!value.is_integral()) {
    fail("bad operand type for unary ", negative ? "-" : "+", ": '", type_name(value), "'");
  }
  if (!negative) return Value::integer(value.as_integer(), value.special);
  return on_integers(Arithmetic::subtract, 0, value.as_integer(), value.special);
}

bool equal(Budget& budget, const Value& a, const Value& b) {
  budget.spend(1);
  if (a.is_number() && b.is_number()) return equal_scalars(a, b);
  if (a.data.index() != b.data.index()) return false;
  if (a.is_text()) {
    budget.spend(static_cast<int64_t>(std::min(a.bytes().size(), b.bytes().size())) /
                 kBytesPerStep);
    return a.bytes() == b.bytes();
  }
  if (a.is_sequence()) {
    const Sequence& x = a.as_sequence();
    const Sequence& y = b.as_sequence();
    if (x.tuple != y.tuple || x.items.size() != y.items.size()) return false;
    for (size_t i = 0; i < x.items.size(); ++i) {
      if (!equal(budget, x.items[i], y.items[i])) return false;
    }
    return true;
  }
  if (a.is_dict()) {
    const Dict& x = a.as_dict();
    const Dict& y = b.as_dict();
    if (x.entries.size() != y.entries.size()) return false;
    for (const auto& [key, value] : x.entries) {
      const Value* other = y.find(key);
      if (other == nullptr || !equal(budget, value, *other)) return false;
    }
    return true;
  }
  if (const auto* range = std::get_if<std::shared_ptr<const Range>>(&a.data)) {
    const Range& x = **range;
    const Range& y = *std::get<std::shared_ptr<const Range>>(b.data);
    if (x.size() != y.size()) return false;
    return x.size() == 0 || (x.start == y.start && (x.size() == 1 || x.step == y.step));
  }
  if (const auto* stream = std::get_if<std::shared_ptr<Stream>>(&a.data)) {
    return *stream == std::get<std::shared_ptr<Stream>>(b.data);
  }
  if (const auto* object = std::get_if<std::shared_ptr<Object>>(&a.data)) {
    return *object == std::get<std::shared_ptr<Object>>(b.data);
  }
  if (a.is<Namespace*>()) return std::get<Namespace*>(a.data) == std::get<Namespace*>(b.data);
  if (a.is<std::shared_ptr<const View>>()) {
    const std::vector<Value> x = iterate(budget, a), y = iterate(budget, b);
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin(), [&](auto& p, auto& q) {
             return equal(budget, p, q);
           });
  }
  return true;  // None or undefined, both
}

bool less(Budget& budget, const Value& a, const Value& b, const char* op) {
  budget.spend(1);
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) {
    if (order_matters(a, b)) return a.as_double() < b.as_double();
    return a.as_integer() < b.as_integer();
  }
  if (a.is_text() && b.is_text()) {
    budget.spend(static_cast<int64_t>(std::min(a.bytes().size(), b.bytes().size())) /
                 kBytesPerStep);
    return a.bytes() < b.bytes();
  }
  if (a.is_sequence() && b.is_sequence() && a.as_sequence().tuple == b.as_sequence().tuple) {
    const auto& x = a.as_sequence().items;
    const auto& y = b.as_sequence().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(budget, x[i], y[i])) return less(budget, x[i], y[i], op);
    }
    return x.size() < y.size();
  }
  fail("'", op, "' not supported between instances of '", type_name(a), "' and '", type_name(b),
       "'");
}

bool compare(Budget& budget, Relation relation, const Value& a, const Value& b) {
  const bool unordered =
      order_matters(a, b) && (std::isnan(a.as_double()) || std::isnan(b.as_double()));
  switch (relation) {
    case Relation::eq:
      return equal(budget, a, b);
    case Relation::ne:
      return !equal(budget, a, b);
    case Relation::lt:
      return less(budget, a, b, "<");
    case Relation::le:
      return !unordered &&
             (equal(budget, a, b) ? (less(budget, a, b, "<="), true) : less(budget, a, b, "<="));
    case Relation::gt:
      return less(budget, b, a, ">");
    case Relation::ge:
      return !unordered &&
             (equal(budget, a, b) ? (less(budget, a, b, ">="), true) : less(budget, b, a, ">="));
    case Relation::in:
      return contains(budget, b, a);
    case Relation::not_in:
      return !contains(budget, b, a);
  }
  return false;
}

bool contains(Budget& budget, const Value& container, const Value& item) {
  if (container.is_text()) {
    require_defined(item);
    if (!item.is_text()) {
      fail("'in <string>' requires string as left operand, not ", type_name(item));
    }
    budget.spend(static_cast<int64_t>(container.bytes().size()) / kBytesPerStep);
    return find_bytes(container.bytes(), item.bytes()) != std::string_view::npos;
  }
  if (container.is_dict()) return container.as_dict().find(item) != nullptr;
  if (container.is_sequence()) {
    for (const Value& member : container.as_sequence().items) {
      if (equal(budget, member, item)) return true;
    }
    return false;
  }
  if (const auto* range = std::get_if<std::shared_ptr<const Range>>(&container.data)) {
    if (!item.is_integral()) return false;
    Integer offset = 0;
    if (__builtin_sub_overflow(item.as_integer(), (*range)->start, &offset)) return false;
    const Integer index = offset / (*range)->step;
    return offset % (*range)->step == 0 && index >= 0 && index < (*range)->size();
  }
  if (container.is<Namespace*>() || container.is_none() || container.is_number()) {
    fail("argument of type '", type_name(container), "' is not iterable");
  }
  for (const Value& member : iterate(budget, container)) {
    if (equal(budget, member, item)) return true;
  }
  return false;
}

}  // namespace longspur::io::chat
