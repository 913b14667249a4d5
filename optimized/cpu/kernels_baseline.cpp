#define SQ_ISA baseline
#include "optimized/cpu/kernels.inl"
