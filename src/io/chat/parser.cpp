// The statement half of the parser.
#include "io/chat/parser.h"

#include <algorithm>

#include "io/chat/expression_parser.h"
#include "io/chat/scoping.h"

namespace longspur::io::chat {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Template run() {
    Template out{};
    out.body = statements({});
    if (current().kind != TokenKind::end) unexpected("a statement");
    out.loop_id = intern("loop");
    out.caller_id = intern("caller");
    out.varargs_id = intern("varargs");
    out.kwargs_id = intern("kwargs");
    out.names = std::move(names_);
    find_hidden_names(out);
    return out;
  }

 private:
  using Ends = std::initializer_list<std::string_view>;

  // Statements up to a tag with one of the names in `ends`, whose name is then the current token.
  Body statements(Ends ends) {
    const Nesting nesting(*this);
    Body body;
    while (current().kind != TokenKind::end) {
      if (current().kind == TokenKind::data) {
        const Token& token = next();
        auto text = std::make_shared<const Text>(token.text, true);
        body.push_back(make(token.position, Data{std::move(text)}));
      } else if (current().kind == TokenKind::variable_begin) {
        const Position position = next().position;
        Output output;
        output.values.push_back(tuple());
        expect(TokenKind::variable_end, "'}}'");
        body.push_back(make(position, std::move(output)));
      } else {
        expect(TokenKind::block_begin, "a tag");
        if (current().kind == TokenKind::name &&
            std::find(ends.begin(), ends.end(), current().text) != ends.end()) {
          return body;
        }
        body.push_back(statement(ends));
        expect(TokenKind::block_end, "'%}'");
      }
    }
    if (ends.size() > 0) unexpected(concat("'", *(ends.end() - 1), "'"));
    return body;
  }

  // The body of the tag at hand: its end, then statements, up to the end tag's name.
  Body block(Ends ends) {
    skip_op(":");
    expect(TokenKind::block_end, "'%}'");
    return statements(ends);
  }
  Body closed_block(std::string_view end) {
    Body body = block({end});
    next();
    return body;
  }

  template <class Node>
  static std::unique_ptr<Statement> make(Position position, Node node) {
    return std::make_unique<Statement>(Statement{position, std::move(node)});
  }

  std::unique_ptr<Statement> statement(Ends ends) {
    using Handler = std::unique_ptr<Statement> (Parser::*)(Position);
    static const std::unordered_map<std::string_view, Handler> kHandlers = {
        {"if", &Parser::if_},
        {"for", &Parser::for_},
        {"set", &Parser::set_},
        {"macro", &Parser::macro},
        {"call", &Parser::call_block},
        {"filter", &Parser::filter_block},
        {"with", &Parser::with_},
        {"print", &Parser::print},
        {"generation", &Parser::generation},
        {"break", &Parser::break_},
        {"continue", &Parser::continue_}};
    const Position position = current().position;
    if (current().kind != TokenKind::name) unexpected("the name of a tag");
    const auto handler = kHandlers.find(current().text);
    if (handler == kHandlers.end()) {
      unexpected(ends.size() > 0 ? concat("a known tag or '", *(ends.end() - 1), "'")
                                 : std::string("a known tag"));
    }
    next();
    return (this->*handler->second)(position);
  }

  // Runs a body that is a scope of its own, where unknown filters are found at once again.
  template <class Parse>
  auto hard(Parse parse) {
    const bool outer = std::exchange(soft_, false);
    auto result = parse();
    soft_ = outer;
    return result;
  }

  std::unique_ptr<Statement> if_(Position position) {
    If node;
    const bool outer = std::exchange(soft_, true);
    while (true) {
      ExprPtr condition = tuple(false);
      node.branches.emplace_back(std::move(condition), block({"elif", "else", "endif"}));
      const std::string tag = next().text;
      if (tag == "elif") continue;
      if (tag == "else") node.otherwise = closed_block("endif");
      break;
    }
    soft_ = outer;
    return make(position, std::move(node));
  }

  std::unique_ptr<Statement> for_(Position position) {
    For node{};
    node.target = target("in", false);
    expect_name("in");
    node.items = tuple(false, "recursive");
    if (skip_name("if")) node.condition = expression();
    node.recursive = skip_name("recursive");
    const int reads_before = reads("loop");
    ++loops_;
    node.body = hard([this] { return block({"else", "endfor"}); });
    --loops_;
    node.uses_loop = node.recursive || reads("loop") > reads_before;
    if (next().text == "else") node.otherwise = hard([this] { return closed_block("endfor"); });
    return make(position, std::move(node));
  }

  std::unique_ptr<Statement> set_(Position position) {
    Target assigned = target({}, true);
    if (skip_op("=")) return make(position, Set{std::move(assigned), tuple()});
    ExprPtr filters = filters_only(false);
    Body body = hard([this] { return closed_block("endset"); });
    return make(position, SetBlock{std::move(assigned), std::move(filters), std::move(body), {}});
  }

  std::unique_ptr<Statement> with_(Position position) {
    With node;
    while (current().kind != TokenKind::block_end) {
      if (!node.values.empty()) expect_op(",");
      Target assigned = target({}, false);
      expect_op("=");
      node.values.emplace_back(std::move(assigned), expression());
    }
    node.body = hard([this] { return closed_block("endwith"); });
    return make(position, std::move(node));
  }

  std::unique_ptr<Statement> print(Position position) {
    Output output;
    while (current().kind != TokenKind::block_end) {
      if (!output.values.empty()) expect_op(",");
      output.values.push_back(expression());
    }
    return make(position, std::move(output));
  }

  Signature signature() {
    Signature out;
    expect_op("(");
    while (!at_op(")")) {
      if (!out.parameters.empty()) expect_op(",");
      const Position position = current().position;
      std::string name = expect_identifier();
      for (const auto& other : out.parameters) {
        if (other.name == name) fail_at(position, concat("parameter '", name, "' given twice"));
      }
      ExprPtr fallback = skip_op("=") ? expression() : nullptr;
      if (!fallback && !out.parameters.empty() && out.parameters.back().fallback) {
        fail_at(position, "parameter without default after one with a default");
      }
      const int id = intern(name);
      out.parameters.push_back({id, std::move(name), std::move(fallback)});
    }
    expect_op(")");
    return out;
  }

  // The body of a macro or call block; what it reads of the special names decides what it takes.
  void macro_body(MacroDefinition& node, std::string_view end) {
    const int caller = reads("caller"), varargs = reads("varargs"), kwargs = reads("kwargs");
    const int loops = std::exchange(loops_, 0);
    node.body = hard([&] { return closed_block(end); });
    loops_ = loops;
    node.signature.uses_caller = reads("caller") > caller;
    node.signature.uses_varargs = reads("varargs") > varargs;
    node.signature.uses_kwargs = reads("kwargs") > kwargs;
    for (const auto& parameter : node.signature.parameters) {
      if (parameter.name == "varargs") node.signature.uses_varargs = false;
      if (parameter.name == "kwargs") node.signature.uses_kwargs = false;
    }
  }

  std::unique_ptr<Statement> macro(Position position) {
    MacroDefinition node{};
    node.name = expect_identifier();
    node.id = intern(node.name);
    node.signature = signature();
    macro_body(node, "endmacro");
    return make(position, std::move(node));
  }

  std::unique_ptr<Statement> call_block(Position position) {
    CallBlock node{};
    node.caller.name = "caller";
    node.caller.id = intern("caller");
    if (at_op("(")) node.caller.signature = signature();
    node.call = expression();
    const auto* chain = std::get_if<Postfix>(&node.call->node);
    if (chain == nullptr || !std::holds_alternative<chat::Call>(chain->steps.back().step)) {
      fail_at(position, "expected a call of a macro");
    }
    macro_body(node.caller, "endcall");
    return make(position, std::move(node));
  }

  std::unique_ptr<Statement> filter_block(Position position) {
    ExprPtr filters = filters_only(true);
    Body body = hard([this] { return closed_block("endfilter"); });
    return make(position, FilterBlock{std::move(filters), std::move(body), {}});
  }

  // The assistant's words, which training wants to find; here only a scope of its own.
  std::unique_ptr<Statement> generation(Position position) {
    const int loops = std::exchange(loops_, 0);
    Body body = hard([this] { return closed_block("endgeneration"); });
    loops_ = loops;
    return make(position, Generation{std::move(body), {}});
  }

  std::unique_ptr<Statement> break_(Position position) {
    if (loops_ == 0) fail_at(position, "'break' outside of a loop");
    return make(position, Break{});
  }
  std::unique_ptr<Statement> continue_(Position position) {
    if (loops_ == 0) fail_at(position, "'continue' outside of a loop");
    return make(position, Continue{});
  }

  int loops_ = 0;  // that a break could leave
};

}  // namespace

Template parse_template(std::string_view source, int depth) {
  return Parser(tokenize(source), depth).run();
}

}  // namespace longspur::io::chat
