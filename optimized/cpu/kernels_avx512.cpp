#define SQ_ISA avx512
#include "optimized/cpu/kernels.inl"
