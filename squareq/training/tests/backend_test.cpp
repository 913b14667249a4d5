// Which backend `auto` means, and what a backend on a GPU gets from libtorch.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>
#include <string>

#include "squareq/contract.hpp"
#include "squareq/training/choose_backend.hpp"
#include "squareq/training/device.hpp"

namespace squareq::training {
namespace {

/// What the CUDA backend says about itself here; null where it is not built.
nlohmann::json cuda_description() {
  try {
    return nlohmann::json::parse(Implementation::load(find_backend("cuda")).describe());
  } catch (const Error&) {
    return nullptr;
  }
}

TEST(Backend, AutoTakesCudaOnlyWhereItCanTrainAndSaysWhy) {
  const ChosenBackend chosen = choose_backend();
  const nlohmann::json cuda = cuda_description();
  const bool trains = cuda.is_object() && cuda.value("usable", false) && torch_has_cuda();
  EXPECT_EQ(chosen.name, trains ? "cuda" : "cpu") << chosen.reason;
  EXPECT_NE(chosen.reason.find(trains ? "usable" : "cuda"), std::string::npos) << chosen.reason;
}

TEST(Backend, OnTheCpuNothingIsPreparedAndBackendsAllocateThemselves) {
  prepare_device({SQ_CPU, 0});
  EXPECT_EQ(device_allocator({SQ_CPU, 0}), nullptr);
}

TEST(Backend, ALibtorchWithoutCudaRefusesTheGpuByName) {
  if (torch_has_cuda()) GTEST_SKIP() << "not run: this libtorch has CUDA";
  try {
    prepare_device({SQ_CUDA, 0});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::CFG_BACKEND);
    EXPECT_NE(std::string(e.what()).find("preset 'cuda'"), std::string::npos) << e.what();
  }
}

TEST(Backend, TheGpuIsDeterministicUnlessAskedOtherwise) {  // SQ-TRN-049
  if (!torch_has_cuda() || !torch::cuda::is_available()) GTEST_SKIP() << "not run: libtorch sees no GPU here";
  for (const bool deterministic : {false, true}) {
    prepare_device({SQ_CUDA, 0}, deterministic);
    EXPECT_EQ(at::globalContext().deterministicAlgorithms(), deterministic);
    EXPECT_FALSE(at::globalContext().allowTF32CuBLAS());
  }
}

TEST(Backend, MemoryComesFromLibtorchAndAFailureIsNull) {
  const nlohmann::json cuda = cuda_description();
  if (!torch_has_cuda() || !cuda.is_object() || !cuda.value("usable", false)) GTEST_SKIP() << "not run: no GPU is usable here";
  prepare_device({SQ_CUDA, 0});
  const sq_allocator& table = *device_allocator({SQ_CUDA, 0});
  for (const std::int32_t kind : {SQ_MEM_DEVICE, SQ_MEM_SCRATCH, SQ_MEM_HOST_PINNED, SQ_MEM_HOST}) {
    EXPECT_EQ(table.allocate(table.user, kind, std::uint64_t{1} << 60, 256, nullptr, "too much"), nullptr) << kind;
    void* memory = table.allocate(table.user, kind, 1000, 256, nullptr, "some");
    ASSERT_NE(memory, nullptr) << kind;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 256, 0u) << kind;
    table.release(table.user, memory, kind, 1000, nullptr);
  }
  EXPECT_EQ(table.allocate(table.user, 9, 1, 1, nullptr, "no kind"), nullptr);
}

}  // namespace
}  // namespace squareq::training
