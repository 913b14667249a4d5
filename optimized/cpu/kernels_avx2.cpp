#define SQ_ISA avx2
#include "optimized/cpu/kernels.inl"
