// Exact counts of NaN and infinite elements, added to what the counters hold (SQ-LIN-030).

#include <bit>
#include <limits>

#include "optimized/cuda/tests/device_memory.hpp"

namespace squareq::cuda_tests {
namespace {

class NumericGuard : public CudaTest {
 protected:
  std::vector<std::int64_t> run(const sq_tensor& x, std::vector<std::int64_t> counts) {
    const auto device_counts = on_device(counts);
    const sq_tensor target = device_tensor(*device_counts, SQ_I64, {2});
    auto args = sized<sq_numeric_guard_args>();
    args.x = &x;
    args.counts = &target;
    call(context_->linear().numeric_guard, *context_, args);
    EXPECT_TRUE(device_counts->guards_intact());
    return device_counts->read<std::int64_t>();
  }
};

TEST_F(NumericGuard, CountsExactlyInEveryDtype) {
  const std::size_t n = 300001;
  const auto pattern = [](std::size_t i) { return i % 1000 == 7 ? 1 : i % 777 == 5 ? 2 : i % 500 == 3 ? 3 : 0; };  // NaN, +inf, -inf
  std::int64_t nans = 0, infinite = 0;
  for (std::size_t i = 0; i < n; ++i) nans += pattern(i) == 1, infinite += pattern(i) >= 2;
  const auto check = [&]<class T>(std::int32_t dtype, T one, T nan, T plus, T minus) {
    std::vector<T> values(n);
    for (std::size_t i = 0; i < n; ++i) values[i] = pattern(i) == 1 ? nan : pattern(i) == 2 ? plus : pattern(i) == 3 ? minus : one;
    const auto x = on_device(values);
    EXPECT_EQ(run(device_tensor(*x, dtype, {static_cast<std::int64_t>(n)}), {5, 7}), (std::vector<std::int64_t>{5 + nans, 7 + infinite})) << dtype_name(dtype);
  };
  check(SQ_F32, 0x7F7FFFFFu, 0xFFC00001u, 0x7F800000u, 0xFF800000u);  // the largest finite number is finite
  check(SQ_BF16, std::uint16_t{0x7F7F}, std::uint16_t{0x7F81}, std::uint16_t{0x7F80}, std::uint16_t{0xFF80});
  check(SQ_F16, std::uint16_t{0x7BFF}, std::uint16_t{0xFE01}, std::uint16_t{0x7C00}, std::uint16_t{0xFC00});
  check(SQ_F64, std::uint64_t{0x7FEFFFFFFFFFFFFF}, std::uint64_t{0x7FF0000000000001}, std::uint64_t{0x7FF0000000000000}, std::uint64_t{0xFFF0000000000000});
}

TEST_F(NumericGuard, LooksOnlyAtTheElementsOfAStridedTensor) {
  // [2, 3, 4] with strides [40, 12, 2] in a buffer of NaN: only the elements of the view are numbers, but two.
  std::vector<float> buffer(100, std::numeric_limits<float>::quiet_NaN());
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 3; ++b)
      for (int c = 0; c < 4; ++c) buffer[static_cast<std::size_t>(a * 40 + b * 12 + c * 2)] = 1;
  buffer[40 + 24 + 6] = std::numeric_limits<float>::infinity();
  buffer[12] = std::numeric_limits<float>::quiet_NaN();
  const auto x = on_device(buffer);
  sq_tensor view = device_tensor(*x, SQ_F32, {2, 3, 4});
  view.strides[0] = 40, view.strides[1] = 12, view.strides[2] = 2;
  EXPECT_EQ(run(view, {0, 0}), (std::vector<std::int64_t>{1, 1}));
}

TEST_F(NumericGuard, EmptyAndScalarTensors) {
  const auto x = on_device(std::vector<float>{std::numeric_limits<float>::infinity()});
  EXPECT_EQ(run(device_tensor(*x, SQ_F32, {0, 4}), {1, 2}), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(run(device_tensor(*x, SQ_F32, {}), {1, 2}), (std::vector<std::int64_t>{1, 3}));
}

TEST_F(NumericGuard, RefusesHostMemoryAndIntegers) {
  DeviceBytes x(64);
  sq_tensor t = device_tensor(x, SQ_I8, {4});
  EXPECT_EQ(error_of([&] { run(t, {0, 0}); }).code(), Code::CALL_DTYPE);
  t = device_tensor(x, SQ_F32, {4});
  t.device = {SQ_CPU, 0};
  EXPECT_EQ(error_of([&] { run(t, {0, 0}); }).code(), Code::CALL_DEVICE);
}

}  // namespace
}  // namespace squareq::cuda_tests
