// The expression half of the parser: jinja2's grammar, one function a level of precedence.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/chat/ast.h"

namespace longspur::io::chat {

class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, int depth)
      : tokens_(std::move(tokens)), depth_left_(depth) {}

 protected:
  // Counts nesting while it lives.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { ++parser_.depth_left_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& look(size_t ahead = 1) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  const Token& next();
  bool at_op(std::string_view op) const;
  bool at_name(std::string_view name) const;
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  void expect_name(std::string_view name);
  void expect(TokenKind kind, std::string_view what);
  std::string expect_identifier();
  int intern(const std::string& name);
  [[noreturn]] void unexpected(std::string_view expected) const;

  ExprPtr expression(bool conditional = true);
  // One expression, or a tuple without brackets.
  ExprPtr tuple(bool conditional = true, std::string_view end_name = {}, bool in_brackets = false);
  Target target(std::string_view end_name, bool allow_attribute);
  ExprPtr filters_only(bool first_without_pipe);  // null when there is none
  Postfix postfix_steps(ExprPtr base, bool filters);

  // How often a name was read so far; differences tell whether a body uses it.
  int reads(const std::string& name) const;

  bool soft_ =
      false;  // inside a branch that may not be taken: unknown filters are found at run time
  std::vector<std::string> names_;

 private:
  ExprPtr conditional();
  ExprPtr either();
  ExprPtr both();
  ExprPtr negation();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool filters);
  ExprPtr primary();
  ExprPtr name_or_constant();
  ExprPtr strings();
  ExprPtr list();
  ExprPtr dict();
  ExprPtr logic(bool any);
  ExprPtr operations(ExprPtr (ExpressionParser::*operand)(),
                     std::initializer_list<std::pair<std::string_view, Arithmetic>> ops);
  bool relation(Relation* out);
  Target simple_target(bool allow_attribute);
  bool at_tuple_end(std::string_view end_name) const;

  CallArguments call_arguments();
  void call_argument(CallArguments& arguments, Position position);
  PostfixStep dot();
  PostfixStep subscript();
  std::variant<Attribute, Subscript, Slice, Call, FilterStep, TestStep> subscribed();
  PostfixStep filter();
  PostfixStep test();
  std::string dotted_name();
  bool at_test_argument() const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_left_;
  std::unordered_map<std::string, int> ids_;
  std::unordered_map<std::string, int> reads_;
};

}  // namespace longspur::io::chat
