// SQ registry arithmetic: values by hand.
#include "squareq/architecture/expression.hpp"

#include <gtest/gtest.h>

#include "squareq/error.hpp"

namespace squareq::architecture_detail {
namespace {

Code code_of(const char* text, const Sizes& sizes) {
  try {
    evaluate(text, sizes);
  } catch (const Error& e) {
    return e.code();
  }
  return Code::OK;
}

TEST(Expression, Values) {
  const Sizes sizes = {{"D", 6144}, {"M", 18432}, {"K", 2}, {"O", 64}, {"W1", 320}};
  EXPECT_EQ(evaluate("3*D+2*M", sizes), 55296u);
  EXPECT_EQ(evaluate("O/(K*K)", sizes), 16u);
  EXPECT_EQ(evaluate("W1+W1*2", sizes), 960u);
  EXPECT_EQ(evaluate("7", sizes), 7u);
}

TEST(Expression, Errors) {
  const Sizes sizes = {{"D", 200}, {"H", 128}, {"Z", 0}, {"B", UINT64_MAX}};
  EXPECT_EQ(code_of("D/H", sizes), Code::MD_TENSOR);
  EXPECT_EQ(code_of("D/Z", sizes), Code::MD_TENSOR);
  EXPECT_EQ(code_of("B+1", sizes), Code::MD_TENSOR);
  EXPECT_EQ(code_of("B*2", sizes), Code::MD_TENSOR);
  EXPECT_EQ(code_of("Q", sizes), Code::INTERNAL);
  EXPECT_EQ(code_of("D D", sizes), Code::INTERNAL);
  EXPECT_EQ(code_of("(D", sizes), Code::INTERNAL);
  EXPECT_EQ(code_of("", sizes), Code::INTERNAL);
}

}  // namespace
}  // namespace squareq::architecture_detail
