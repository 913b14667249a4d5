// Which kernel a product gets, on devices of every kind: host arithmetic, so these run without a GPU.
#include "optimized/cuda/linear/kernel_table.hpp"

#include <gtest/gtest.h>

#include "squareq/error.hpp"

namespace squareq::cuda_tests {
namespace {

using cuda::choose_kernel;
using cuda::KernelDevice;
using cuda::ProductShape;

const KernelDevice kAmpere{8, 0, 108, ""}, kAda{8, 9, 128, ""}, kHopper{9, 0, 132, ""}, kBlackwell{12, 0, 170, ""};

ProductShape shape(std::int32_t dtype, std::int64_t rows, bool transposed = false) { return {dtype, rows, 12288, 3072, 3072, 3072, transposed}; }

std::string chosen(const KernelDevice& device, const ProductShape& s) { return choose_kernel(device, s).name; }

bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

TEST(KernelTable, HopperHasKernelsOfItsOwn) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16}) {
    for (const std::int64_t rows : {1, 16, 32}) EXPECT_TRUE(starts(chosen(kHopper, shape(dtype, rows)), "mma_few_rows")) << rows;
    for (const std::int64_t rows : {33, 512, 4608}) EXPECT_TRUE(starts(chosen(kHopper, shape(dtype, rows)), "wgmma_tma")) << rows;
    EXPECT_TRUE(starts(chosen(kHopper, shape(dtype, 16, true)), "wgmma_tma"));  // dX
  }
  EXPECT_TRUE(starts(chosen(kHopper, shape(SQ_I8, 16)), "wgmma_tma"));
}

TEST(KernelTable, OthersGetNothingThatTheyCannotRun) {
  for (const KernelDevice* device : {&kAmpere, &kAda, &kBlackwell})
    for (const bool transposed : {false, true})
      for (const std::int64_t rows : {1, 16, 64, 4608}) {
        for (const std::int32_t dtype : {SQ_BF16, SQ_F16, SQ_I8}) {
          const auto choice = choose_kernel(*device, shape(dtype, rows, transposed));
          EXPECT_TRUE(starts(choice.name, "mma_sync")) << device->major << " " << choice.name;
          for (const cuda::Rejected& r : choice.rejected) EXPECT_FALSE(r.reason.empty()) << r.kernel;
        }
        EXPECT_TRUE(starts(chosen(*device, shape(SQ_F32, rows, transposed)), "plain_fp32"));
      }
}

TEST(KernelTable, RowsThatCopiesOf16BytesCannotReachGoElsewhere) {
  ProductShape odd = shape(SQ_BF16, 16);
  odd.weight_stride = 3073;
  EXPECT_TRUE(starts(chosen(kHopper, odd), "mma_sync"));
  odd.weight_stride = 1536;  // rows that overlap: tensor maps refuse them, copies do not mind
  EXPECT_TRUE(starts(chosen(kHopper, odd), "mma_few_rows"));
  odd.rows = 512;
  EXPECT_TRUE(starts(chosen(kHopper, odd), "mma_sync"));
}

TEST(KernelTable, FewRowsShareTheDepthOutAsFarAsThereAreSlices) {
  // Two blocks per multiprocessor: 264 over the tiles of 128 features, at most eight, at most one per slice of 128.
  const auto parts = [](std::int64_t columns, std::int64_t depth) { return choose_kernel(kHopper, {SQ_BF16, 16, columns, depth, depth, depth, false}).depth_parts; };
  EXPECT_EQ(parts(3072, 3072), 8);
  EXPECT_EQ(parts(9216, 3072), 3);
  EXPECT_EQ(parts(12288, 3072), 2);
  EXPECT_EQ(parts(21504, 3072), 1);
  EXPECT_EQ(parts(128, 256), 2);
  EXPECT_EQ(parts(128, 16), 1);
}

TEST(KernelTable, TheEnvironmentNamesTheFirst) {
  KernelDevice device = kHopper;
  device.first_kernel = "mma_sync";
  const auto choice = choose_kernel(device, shape(SQ_BF16, 16));
  EXPECT_TRUE(starts(choice.name, "mma_sync"));
  ASSERT_EQ(choice.rejected.size(), 3u);
  EXPECT_EQ(choice.rejected[0].kernel, "mma_few_rows");
  EXPECT_NE(choice.rejected[0].reason.find("mma_sync"), std::string::npos);
  device.first_kernel = "plain_fp32";  // integer sums of codes are beyond it
  try {
    choose_kernel(device, shape(SQ_I8, 16));
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::CALL_UNSUPPORTED);
  }
}

TEST(KernelTable, UnknownNamesAreRefusedWithTheKnownOnes) {
  EXPECT_EQ(cuda::check_kernel_name(""), "");
  EXPECT_EQ(cuda::check_kernel_name("wgmma_tma"), "wgmma_tma");
  try {
    cuda::check_kernel_name("cutlass");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::CFG_BACKEND);
    for (const char* name : {"cutlass", "mma_few_rows", "wgmma_tma", "mma_sync", "plain_fp32"}) EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace squareq::cuda_tests
