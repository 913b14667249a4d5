// wgmma with the left operand in registers, one step of 32 bytes of depth: m64 (features) x kRows. Sums lie as in mma.sync, 8 rows per group.
#pragma once

#include "optimized/cuda/kernels/fragment.cuh"

namespace squareq::cuda {

/// Sums, four per group of 8 rows, are named by their number: %0 to %(n - 1); then four words of the left operand and the descriptor.
#define SQUAREQ_GROUP(c, j) "+" c(d[j][0]), "+" c(d[j][1]), "+" c(d[j][2]), "+" c(d[j][3])
#define SQUAREQ_4_GROUPS(c, j) SQUAREQ_GROUP(c, j), SQUAREQ_GROUP(c, j + 1), SQUAREQ_GROUP(c, j + 2), SQUAREQ_GROUP(c, j + 3)
#define SQUAREQ_8_GROUPS(c, j) SQUAREQ_4_GROUPS(c, j), SQUAREQ_4_GROUPS(c, j + 4)
#define SQUAREQ_16_GROUPS(c, j) SQUAREQ_8_GROUPS(c, j), SQUAREQ_8_GROUPS(c, j + 8)
#define SQUAREQ_32_GROUPS(c, j) SQUAREQ_16_GROUPS(c, j), SQUAREQ_16_GROUPS(c, j + 16)
#define SQUAREQ_NAMES_64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SQUAREQ_NAMES_128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SQUAREQ_NAMES_256 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SQUAREQ_WGMMA(shape, types, names, left, right, flags, groups, c)                                                            \
  asm volatile("{.reg .pred add; setp.eq.b32 add, 0, 0; wgmma.mma_async.sync.aligned." shape "." types " {" names "}, {" left "}, " right \
               ", add" flags ";}" : groups(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right_operand))

template <class T, int kRows>
struct WarpgroupMultiply;
template <>
struct WarpgroupMultiply<__nv_bfloat16, 64> {
  __device__ static void step(float (&d)[8][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n64k16", "f32.bf16.bf16", SQUAREQ_NAMES_64, "%32,%33,%34,%35", "%36", ", 1, 1, 0", SQUAREQ_8_GROUPS, "f");
  }
};
template <>
struct WarpgroupMultiply<__nv_bfloat16, 128> {
  __device__ static void step(float (&d)[16][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n128k16", "f32.bf16.bf16", SQUAREQ_NAMES_128, "%64,%65,%66,%67", "%68", ", 1, 1, 0", SQUAREQ_16_GROUPS, "f");
  }
};
template <>
struct WarpgroupMultiply<__nv_bfloat16, 256> {
  __device__ static void step(float (&d)[32][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n256k16", "f32.bf16.bf16", SQUAREQ_NAMES_256, "%128,%129,%130,%131", "%132", ", 1, 1, 0", SQUAREQ_32_GROUPS, "f");
  }
};
template <>
struct WarpgroupMultiply<__half, 64> {
  __device__ static void step(float (&d)[8][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n64k16", "f32.f16.f16", SQUAREQ_NAMES_64, "%32,%33,%34,%35", "%36", ", 1, 1, 0", SQUAREQ_8_GROUPS, "f");
  }
};
template <>
struct WarpgroupMultiply<__half, 128> {
  __device__ static void step(float (&d)[16][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n128k16", "f32.f16.f16", SQUAREQ_NAMES_128, "%64,%65,%66,%67", "%68", ", 1, 1, 0", SQUAREQ_16_GROUPS, "f");
  }
};
template <>
struct WarpgroupMultiply<__half, 256> {
  __device__ static void step(float (&d)[32][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n256k16", "f32.f16.f16", SQUAREQ_NAMES_256, "%128,%129,%130,%131", "%132", ", 1, 1, 0", SQUAREQ_32_GROUPS, "f");
  }
};
template <>
struct WarpgroupMultiply<signed char, 64> {
  __device__ static void step(int (&d)[8][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n64k32", "s32.s8.s8", SQUAREQ_NAMES_64, "%32,%33,%34,%35", "%36", "", SQUAREQ_8_GROUPS, "r");
  }
};
template <>
struct WarpgroupMultiply<signed char, 128> {
  __device__ static void step(int (&d)[16][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n128k32", "s32.s8.s8", SQUAREQ_NAMES_128, "%64,%65,%66,%67", "%68", "", SQUAREQ_16_GROUPS, "r");
  }
};
template <>
struct WarpgroupMultiply<signed char, 256> {
  __device__ static void step(int (&d)[32][4], const unsigned (&a)[4], std::uint64_t right_operand) {
    SQUAREQ_WGMMA("m64n256k32", "s32.s8.s8", SQUAREQ_NAMES_256, "%128,%129,%130,%131", "%132", "", SQUAREQ_32_GROUPS, "r");
  }
};

#undef SQUAREQ_GROUP
#undef SQUAREQ_4_GROUPS
#undef SQUAREQ_8_GROUPS
#undef SQUAREQ_16_GROUPS
#undef SQUAREQ_32_GROUPS
#undef SQUAREQ_NAMES_64
#undef SQUAREQ_NAMES_128
#undef SQUAREQ_NAMES_256
#undef SQUAREQ_WGMMA

}  // namespace squareq::cuda
