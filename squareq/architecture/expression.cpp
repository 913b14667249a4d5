#include "squareq/architecture/expression.hpp"

#include <cctype>

#include "squareq/error.hpp"

namespace squareq::architecture_detail {
namespace {

class Parser {
 public:
  Parser(std::string_view text, const Sizes& sizes) : text_(text), sizes_(sizes) {}

  std::uint64_t parse() {
    const std::uint64_t value = sum();
    if (at_ != text_.size()) malformed();
    return value;
  }

 private:
  std::uint64_t sum() {
    std::uint64_t value = product();
    while (take('+'))
      if (__builtin_add_overflow(value, product(), &value)) overflow();
    return value;
  }

  std::uint64_t product() {
    std::uint64_t value = factor();
    for (;;) {
      if (take('*')) {
        if (__builtin_mul_overflow(value, factor(), &value)) overflow();
      } else if (take('/')) {
        const std::uint64_t divisor = factor();
        if (divisor == 0 || value % divisor != 0)
          throw Error(Code::MD_TENSOR, "model sizes do not fit: " + std::string(text_) + " with " + std::to_string(value) + " / " +
                                           std::to_string(divisor) + " is not whole");
        value /= divisor;
      } else {
        return value;
      }
    }
  }

  std::uint64_t factor() {
    if (take('(')) {
      const std::uint64_t value = sum();
      if (!take(')')) malformed();
      return value;
    }
    const std::size_t start = at_;
    while (at_ < text_.size() && std::isalnum(static_cast<unsigned char>(text_[at_]))) ++at_;
    if (at_ == start) malformed();
    const std::string_view word = text_.substr(start, at_ - start);
    if (!std::isdigit(static_cast<unsigned char>(word[0]))) {
      const auto found = sizes_.find(word);
      if (found == sizes_.end())
        throw Error(Code::INTERNAL, "registry expression '" + std::string(text_) + "': unknown size " + std::string(word));
      return found->second;
    }
    std::uint64_t value = 0;
    for (const char c : word) {
      if (!std::isdigit(static_cast<unsigned char>(c))) malformed();
      if (__builtin_mul_overflow(value, std::uint64_t{10}, &value) ||
          __builtin_add_overflow(value, static_cast<std::uint64_t>(c - '0'), &value))
        overflow();
    }
    return value;
  }

  bool take(char c) {
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  [[noreturn]] void malformed() const { throw Error(Code::INTERNAL, "registry expression '" + std::string(text_) + "' is malformed"); }
  [[noreturn]] void overflow() const { throw Error(Code::MD_TENSOR, "model sizes overflow 64 bits in " + std::string(text_)); }

  std::string_view text_;
  const Sizes& sizes_;
  std::size_t at_ = 0;
};

}  // namespace

std::uint64_t evaluate(std::string_view expression, const Sizes& sizes) { return Parser(expression, sizes).parse(); }

}  // namespace squareq::architecture_detail
