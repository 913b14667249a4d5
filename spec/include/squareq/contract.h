/* squareq contract, version 1: the C ABI between a host (library, trainer, conformance suite) and an implementation.
 *
 * Conventions, once for the whole file (spec/00-conventions.md):
 *  - Row-major. X [M, K], W [N, K] = [out_features, in_features], Y [M, N]. Strides count elements.
 *  - Every struct starts with `size` = sizeof of the struct the caller compiled; a callee reads no field past it. Fields are
 *    only ever appended, and zero always means "absent / default".
 *  - A call returns SQ_OK or a code of error_codes.inc and then fills `error` (may be NULL). A refused request changes nothing.
 *  - All state lives in a context; two contexts never share any. Calls on one context may come from any thread, and may
 *    overlap unless they write the same tensor or use the same stream session.
 *  - The caller owns every tensor; an implementation keeps no pointer after the call returns (device work ordered on `stream`
 *    excepted: the caller keeps the memory alive until the stream has passed it).
 *  - `stream` is a CUDA stream on a CUDA device, NULL on the CPU.
 *  - Text is UTF-8, NUL-terminated.
 */
#ifndef SQUAREQ_CONTRACT_H
#define SQUAREQ_CONTRACT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SQ_ABI_VERSION 1u
#define SQ_MAX_RANK 8

typedef int32_t sq_status;
enum {
  SQ_OK = 0,
#define SQ_CODE(name, number, klass, meaning) SQ_##name = number,
#include "squareq/error_codes.inc"
#undef SQ_CODE
};

/* Filled on failure. `layer` and `tensor` are empty where no layer or tensor is concerned. */
typedef struct sq_error {
  uint32_t size;
  sq_status code;
  char message[1024];
  char layer[512];
  char tensor[512];
  char file[1024];
} sq_error;

/* ------------------------------------------------------------------ tensors */

typedef enum sq_dtype {
  SQ_F32 = 0, SQ_F16 = 1, SQ_BF16 = 2, SQ_F64 = 3, SQ_I8 = 4, SQ_U8 = 5, SQ_I32 = 6, SQ_I64 = 7
} sq_dtype;

typedef enum sq_device_kind { SQ_CPU = 0, SQ_CUDA = 1 } sq_device_kind;

typedef struct sq_device {
  int32_t kind;  /* sq_device_kind */
  int32_t index;
} sq_device;

typedef void* sq_stream_handle;

/* A view; `data` may be NULL only when the element count is 0. */
typedef struct sq_tensor {
  void* data;
  int32_t dtype; /* sq_dtype */
  int32_t rank;
  int64_t shape[SQ_MAX_RANK];
  int64_t strides[SQ_MAX_RANK];
  sq_device device;
} sq_tensor;

/* A named part of a weight or of a quantized activation: "qweight", "scale", "zero_point", "bias", ... */
typedef struct sq_part {
  const char* name;
  sq_tensor tensor;
} sq_part;

/* A weight is a format id of registry/quant_formats.json with that format's parts; a bias, where the layer has one, is a part.
 * in_features is the unpadded K; the padded row length is qweight's own. */
typedef struct sq_weight {
  uint32_t size;
  uint32_t part_count;
  const char* format; /* "bp8_v2" */
  const char* name;   /* canonical layer name, for messages */
  int64_t out_features;
  int64_t in_features;
  const sq_part* parts;
} sq_weight;

/* An activation quantized once and used by several layers (q, k and v share one). "per_token_int8": parts q I8 [M, K], scale F32 [M]. */
typedef struct sq_quantized_activation {
  uint32_t size;
  uint32_t part_count;
  const char* format;
  const sq_part* parts;
} sq_quantized_activation;

/* ------------------------------------------------------------------ the host's side */

typedef enum sq_memory_kind {
  SQ_MEM_HOST = 0,        /* pageable host memory */
  SQ_MEM_HOST_PINNED = 1, /* page-locked host memory */
  SQ_MEM_DEVICE = 2,      /* weights: slots and residents. Counts against the budget */
  SQ_MEM_SCRATCH = 3      /* workspace on the compute device, bounded per call */
} sq_memory_kind;

/* Memory comes from the caller, who can therefore measure it and make it fail. allocate returns NULL on failure;
 * alignment is a power of two; `tag` names the consumer in reports. Thread-safe. */
typedef struct sq_allocator {
  uint32_t size;
  uint32_t reserved;
  void* user;
  void* (*allocate)(void* user, int32_t kind, uint64_t bytes, uint64_t alignment, sq_stream_handle stream, const char* tag);
  void (*release)(void* user, void* pointer, int32_t kind, uint64_t bytes, sq_stream_handle stream);
} sq_allocator;

typedef struct sq_host {
  uint32_t size;
  uint32_t abi_version;   /* SQ_ABI_VERSION the host was compiled with */
  sq_device device;       /* where tensors and slots live */
  uint32_t threads;       /* worker threads wanted; 0 = all cores */
  uint32_t deterministic; /* 1: run == rerun, streamed == resident, bit for bit */
  const sq_allocator* allocator; /* NULL: the implementation uses its own plain allocation */
  void* user;
  /* Optional: one call for every residency transition of a block (sq_residency values). May come from any thread. */
  void (*on_transition)(void* user, uint64_t session, uint32_t block, int32_t from, int32_t to);
  /* Optional: level 0 error .. 3 debug. */
  void (*log)(void* user, int32_t level, const char* text);
} sq_host;

typedef struct sq_context sq_context; /* opaque */

/* Receives text of any length; may be called several times, pieces are concatenated. */
typedef void (*sq_text_sink)(void* user, const char* text, uint64_t bytes);

/* ------------------------------------------------------------------ weights: direct or leased */

typedef uint64_t sq_lease; /* 0 is never valid; carries a generation, so that use after release is CALL_STATE, never UB */

/* Exactly one of `weight` and `lease` is set. With a lease, `layer` indexes the block's layer table. */
typedef struct sq_weight_ref {
  uint32_t size;
  uint32_t layer;
  const sq_weight* weight;
  uint64_t session;
  sq_lease lease;
} sq_weight_ref;

/* ------------------------------------------------------------------ group: linear */

typedef enum sq_activation { SQ_ACT_NONE = 0, SQ_ACT_GELU_TANH = 1, SQ_ACT_GELU_ERF = 2, SQ_ACT_SILU = 3 } sq_activation;

/* Rounding class of spec/35-numerics.md. DEFAULT: exact weights (R1) for floating activations, R4 where xq is given. */
typedef enum sq_compute { SQ_COMPUTE_DEFAULT = 0, SQ_COMPUTE_EXACT_W = 1, SQ_COMPUTE_W8A8 = 2 } sq_compute;

/* Low-rank branch, added before bias and activation: Y += scaling * (X A) B. Memory holds the transposes: a_t [r, in] and
 * b_t [out, r], both F32. `x` is the branch's own input (dropout); NULL = the layer's X. */
typedef struct sq_lora {
  uint32_t size;
  float scaling; /* alpha / rank */
  const sq_tensor* a_t;
  const sq_tensor* b_t;
  const sq_tensor* x;
} sq_lora;

typedef struct sq_quantize_args {
  uint32_t size;
  uint32_t pack_k;        /* row alignment in elements; <= 1: none */
  const char* format;     /* "bp8_v2" */
  const char* name;       /* layer name for messages */
  sq_stream_handle stream;
  const sq_tensor* w;     /* [N, K] F32, F16, BF16 or F64, row stride free, column stride 1 */
  const sq_part* out;     /* caller-owned: qweight I8 [N, padded K], scale F32 [N], zero_point F32 [N] */
  uint32_t out_count;
  uint32_t reserved;
  uint64_t* floored_rows; /* optional: rows that hit the 1e-8 scale floor */
} sq_quantize_args;

typedef struct sq_dequantize_args {
  uint32_t size;
  uint32_t reserved;
  sq_stream_handle stream;
  const sq_weight_ref* weight;
  int64_t first_row;       /* rows [first_row, first_row + out.shape[0]) */
  const sq_tensor* out;    /* [rows, in_features] F32, BF16 or F16; padding dropped. 16 bits: fp32 product, then one rounding */
} sq_dequantize_args;

typedef struct sq_linear_forward_args {
  uint32_t size;
  int32_t activation; /* sq_activation */
  int32_t compute;    /* sq_compute */
  uint32_t reserved;
  sq_stream_handle stream;
  const sq_weight_ref* weight;
  const sq_tensor* x;                   /* [M, K] F32, BF16 or F16; column stride 1 */
  const sq_quantized_activation* xq;    /* instead of x */
  const sq_lora* lora;                  /* optional */
  const sq_tensor* y;                   /* [M, N], out; dtype of x unless F32 is asked for */
  const sq_tensor* preactivation;       /* optional out [M, N]: what the activation saw */
  const sq_tensor* h;                   /* optional out [M, r]: H = X A, F32 */
} sq_linear_forward_args;

typedef struct sq_linear_backward_args {
  uint32_t size;
  int32_t activation;
  int32_t compute;
  uint32_t accumulate;             /* 1: da_t and db_t are added to, 0: overwritten */
  sq_stream_handle stream;
  const sq_weight_ref* weight;
  const sq_tensor* dy;             /* [M, N] */
  const sq_tensor* preactivation;  /* required when activation is not NONE */
  const sq_tensor* x;              /* [M, K]; needed for da_t, and for H where h is NULL */
  const sq_lora* lora;             /* optional */
  const sq_tensor* h;              /* optional saved H */
  const sq_tensor* dx;             /* optional out [M, K], dtype of dy; with lora->x set: the base's share only */
  const sq_tensor* dx_lora;        /* optional out [M, K]: the branch's share, only with lora->x */
  const sq_tensor* da_t;           /* optional out [r, K] F32 */
  const sq_tensor* db_t;           /* optional out [N, r] F32 */
} sq_linear_backward_args;

/* quantize_activation producers: alone, or fused into what makes the activation. */
typedef enum sq_producer { SQ_PRODUCER_NONE = 0, SQ_PRODUCER_LAYERNORM_MODULATE = 1, SQ_PRODUCER_GELU_TANH = 2 } sq_producer;

typedef struct sq_quantize_activation_args {
  uint32_t size;
  int32_t producer;
  sq_stream_handle stream;
  const sq_tensor* x;          /* [M, K] */
  const sq_tensor* shift;      /* LAYERNORM_MODULATE: [groups, K], M % groups == 0 */
  const sq_tensor* scale;      /* LAYERNORM_MODULATE: [groups, K] */
  float epsilon;
  uint32_t out_count;
  const char* format;          /* "per_token_int8" */
  const sq_part* out;
} sq_quantize_activation_args;

/* Counters live where the device is and are added to, so that a step reads them once. */
typedef struct sq_numeric_guard_args {
  uint32_t size;
  uint32_t reserved;
  sq_stream_handle stream;
  const sq_tensor* x;
  const sq_tensor* counts; /* I64 [2]: NaN, infinite */
} sq_numeric_guard_args;

/* What makes a projection's rows the queries or keys of attention, in one pass: RMSNorm of every head, then a rotation (RoPE) of its neighbouring
 * pairs. A row is a token; row m takes row m % P of the table. With r = 1 / sqrt(mean(x^2) + epsilon) over a head of d elements, n = x r weight:
 *   y[2 j] = n[2 j] cos - n[2 j + 1] sin,  y[2 j + 1] = n[2 j] sin + n[2 j + 1] cos,  cos and sin of pair j. F32 inside, rounded once. */
typedef struct sq_rms_norm_rope_forward_args {
  uint32_t size;
  float epsilon;
  sq_stream_handle stream;
  const sq_tensor* x;      /* [M, H d] F32, BF16 or F16; column stride 1 */
  const sq_tensor* weight; /* [d] F32, BF16 or F16 */
  const sq_tensor* rope;   /* [P, d] F32, M % P == 0: cos, sin of pair 0, cos, sin of pair 1, ... NULL: no rotation, any d */
  const sq_tensor* y;      /* out [M, H d], dtype of x; may be x itself */
} sq_rms_norm_rope_forward_args;

/* The gradient of x; weight and table are constants. */
typedef struct sq_rms_norm_rope_backward_args {
  uint32_t size;
  float epsilon;
  sq_stream_handle stream;
  const sq_tensor* dy;     /* [M, H d], dtype of x */
  const sq_tensor* x;
  const sq_tensor* weight;
  const sq_tensor* rope;
  const sq_tensor* dx;     /* out [M, H d], dtype of x; may be dy itself */
} sq_rms_norm_rope_backward_args;

typedef enum sq_op {
  SQ_OP_QUANTIZE = 0, SQ_OP_DEQUANTIZE = 1, SQ_OP_LINEAR_FORWARD = 2, SQ_OP_LINEAR_BACKWARD = 3,
  SQ_OP_QUANTIZE_ACTIVATION = 4, SQ_OP_NUMERIC_GUARD = 5, SQ_OP_RMS_NORM_ROPE_FORWARD = 6, SQ_OP_RMS_NORM_ROPE_BACKWARD = 7
} sq_op;

/* A NULL entry means "not offered"; describe() must then not list the operation. The LoRA branch is the group "lora". */
typedef struct sq_linear_group {
  uint32_t size;
  uint32_t reserved;
  sq_status (*quantize)(sq_context*, const sq_quantize_args*, sq_error*);
  sq_status (*dequantize)(sq_context*, const sq_dequantize_args*, sq_error*);
  sq_status (*linear_forward)(sq_context*, const sq_linear_forward_args*, sq_error*);
  sq_status (*linear_backward)(sq_context*, const sq_linear_backward_args*, sq_error*);
  sq_status (*quantize_activation)(sq_context*, const sq_quantize_activation_args*, sq_error*);
  sq_status (*numeric_guard)(sq_context*, const sq_numeric_guard_args*, sq_error*);
  /* `args` is the operation's own struct. Writes one JSON object {"op","kernel","rejected":[{"kernel","reason"}]}; runs nothing. */
  sq_status (*explain)(sq_context*, int32_t op, const void* args, sq_text_sink sink, void* sink_user, sq_error*);
  /* Later than `explain`: a table that was compiled before ends there (its `size` says so), which means "not offered". */
  sq_status (*rms_norm_rope_forward)(sq_context*, const sq_rms_norm_rope_forward_args*, sq_error*);
  sq_status (*rms_norm_rope_backward)(sq_context*, const sq_rms_norm_rope_backward_args*, sq_error*);
} sq_linear_group;

/* ------------------------------------------------------------------ group: stream */

typedef enum sq_residency {
  SQ_UNLOADED = 0, SQ_HOST_STAGED = 1, SQ_PREFETCHING = 2, SQ_GPU_READY = 3, SQ_EVICTING = 4, SQ_GPU_FREEING = 5
} sq_residency;

typedef struct sq_part_desc {
  const char* name;
  int32_t dtype;
  int32_t rank;
  int64_t shape[SQ_MAX_RANK];
  uint64_t offset; /* bytes from the start of the block's extent; a multiple of 256 */
} sq_part_desc;

typedef struct sq_layer_desc {
  const char* name;
  const char* format;
  int64_t out_features;
  int64_t in_features;
  const sq_part_desc* parts;
  uint32_t part_count;
  uint32_t reserved;
} sq_layer_desc;

enum { SQ_BLOCK_RESIDENT = 1u }; /* loaded at open, in memory of its own, leased at any time */

/* A block is loaded as one extent whose layout on the device is the layout the read callback delivers. */
typedef struct sq_block_desc {
  const char* name;
  uint64_t extent_bytes; /* a multiple of 256 */
  const sq_layer_desc* layers;
  uint32_t layer_count;
  uint32_t flags;
} sq_block_desc;

/* One visit of one block by the compute loop: it is acquired, used, released. A visit whose slot already holds the block
 * (the slot's version tag says so) loads nothing. */
typedef struct sq_visit {
  uint32_t block;
  uint32_t slot;
} sq_visit;

/* Schedules are data made by the caller (squareq/streaming). A load for visits[j] may start once every earlier visit of that
 * slot has been released and j - cursor <= lookahead. */
typedef struct sq_schedule {
  const sq_visit* visits;
  uint32_t visit_count;
  uint32_t lookahead;
  const char* name; /* "train", "forward" */
} sq_schedule;

/* Delivers bytes [offset, offset + bytes) of a block's extent. Called from the implementation's own loader thread. A short
 * delivery is an error; a non-zero return aborts the load and reaches the caller through acquire. */
typedef sq_status (*sq_read_extent)(void* user, uint32_t block, uint64_t offset, void* destination, uint64_t bytes, sq_error*);

typedef struct sq_stream_open_args {
  uint32_t size;
  uint32_t slot_count;
  uint64_t slot_bytes;
  const sq_block_desc* blocks;
  uint32_t block_count;
  uint32_t schedule_count;
  const sq_schedule* schedules;
  sq_read_extent read;
  void* read_user;
  uint64_t budget_bytes;   /* 0: none. slots + residents must fit, else GPU_OOM before any allocation */
  uint32_t poison_slots;   /* 1: a released slot about to be reused is filled with 0xA5 first (tests) */
  uint32_t keep_host_master; /* 1: extents are read once into host memory and re-sent from there */
} sq_stream_open_args;

typedef struct sq_stream_stats {
  uint32_t size;
  uint32_t reserved;
  uint64_t device_bytes;      /* slots + residents now held */
  uint64_t peak_device_bytes;
  uint64_t host_bytes;
  uint64_t loads;             /* since open, residents excluded */
  uint64_t loaded_bytes;
  uint64_t hits;              /* acquire found the block complete */
  uint64_t misses;            /* acquire had to wait for, or start, the load */
  uint64_t wait_ns;           /* time acquire waited */
  uint64_t evictions;
  uint64_t steps;
} sq_stream_stats;

typedef struct sq_stream_group {
  uint32_t size;
  uint32_t reserved;
  sq_status (*open)(sq_context*, const sq_stream_open_args*, uint64_t* session, sq_error*);
  /* Starts a pass over schedules[schedule]; prefetch may begin. CALL_STATE inside another pass. */
  sq_status (*begin_step)(sq_context*, uint64_t session, uint32_t schedule, sq_error*);
  /* The block must be the one of the next visit (CALL_STATE, naming both), or resident. Blocks until its bytes are usable by
   * work queued on `stream`. */
  sq_status (*acquire)(sq_context*, uint64_t session, uint32_t block, sq_stream_handle stream, sq_lease*, sq_error*);
  sq_status (*release)(sq_context*, uint64_t session, sq_lease, sq_stream_handle stream, sq_error*);
  /* Abandoned = 1 ends a pass early (an exception unwound it): every lease the pass granted is given up and pending loads are cancelled. */
  sq_status (*end_step)(sq_context*, uint64_t session, uint32_t abandoned, sq_error*);
  sq_status (*stats)(sq_context*, uint64_t session, sq_stream_stats*, sq_error*);
  /* The layer's parts as they lie in the slot. Valid while the lease is. `weight->parts` points into the implementation. */
  sq_status (*lease_weight)(sq_context*, uint64_t session, sq_lease, uint32_t layer, sq_weight*, sq_error*);
  sq_status (*close)(sq_context*, uint64_t session, sq_error*);
} sq_stream_group;

/* ------------------------------------------------------------------ group: telemetry */

/* The 17 StageHand keys in their order, then ours (spec/80-telemetry.md). Times in ms, memory in MiB where the name says so. */
typedef struct sq_step_metrics {
  uint32_t size;
  uint32_t reserved;
  int64_t step;
  int64_t h2d_bytes, d2h_bytes;
  double copy_time_ms, compute_time_ms, stall_time_ms;
  int64_t stall_count, evictions, prefetch_hits, prefetch_misses;
  double vram_used_mb, vram_reserved_mb;
  int64_t host_pool_free, host_pool_in_use, dtype_promotions, nan_count, inf_count;
  double wall_ms, slot_wait_ms;
  int64_t disk_read_bytes;
  double disk_read_ms;
  int64_t pinned_bytes, vram_peak_bytes, launches;
} sq_step_metrics;

typedef struct sq_telemetry_group {
  uint32_t size;
  uint32_t reserved;
  /* Metrics of the last finished pass of the session. */
  sq_status (*last_step)(sq_context*, uint64_t session, sq_step_metrics*, sq_error*);
} sq_telemetry_group;

/* ------------------------------------------------------------------ groups: format and module (JSON in, JSON out) */

/* Requests and answers are JSON objects (spec/20-slab-format.md, spec/90-conformance.md). */
typedef struct sq_format_group {
  uint32_t size;
  uint32_t reserved;
  /* {"model","out","name","arch_id"?,"pack_k"?,"include_prefix"?:[..],"arch"?,"companion"?:bool} -> {"slab","manifest","companion"|null,...} */
  sq_status (*build)(sq_context*, const char* request, sq_text_sink, void* sink_user, sq_error*);
  /* {"slab" | "container", "model"?, "quick"?} -> the object of `squareq verify --json`; SQ_OK also when problems were found */
  sq_status (*validate)(sq_context*, const char* request, sq_text_sink, void* sink_user, sq_error*);
  /* {"slab"} -> layers, parts, bytes: the object of `squareq inspect --json` */
  sq_status (*report)(sq_context*, const char* request, sq_text_sink, void* sink_user, sq_error*);
} sq_format_group;

typedef struct sq_module_group {
  uint32_t size;
  uint32_t reserved;
  /* Scaffold a module tree: {"layers":[{"name","in","out","bias"}], "others":[{"name","kind","shape"}], "lora":{"rank","alpha"}|null}. */
  sq_status (*create)(sq_context*, const char* request, uint64_t* module, sq_text_sink, void* sink_user, sq_error*);
  /* {"slab"} -> {"loaded": n} */
  sq_status (*load)(sq_context*, uint64_t module, const char* request, sq_text_sink, void* sink_user, sq_error*);
  /* {"dtype": "bf16", "scope": "module"|"parent"} */
  sq_status (*cast)(sq_context*, uint64_t module, const char* request, sq_error*);
  /* -> {"parameters":[{"name","dtype","shape","trainable"}], "buffers":[...]} */
  sq_status (*list)(sq_context*, uint64_t module, sq_text_sink, void* sink_user, sq_error*);
  sq_status (*freeze)(sq_context*, uint64_t module, sq_error*);
  /* Copies one parameter or buffer out, as contiguous bytes of its own dtype. */
  sq_status (*read)(sq_context*, uint64_t module, const char* name, const sq_tensor* out, sq_error*);
  sq_status (*write)(sq_context*, uint64_t module, const char* name, const sq_tensor* in, sq_error*);
  /* One layer by name: x [M, K] -> y [M, N]. */
  sq_status (*forward)(sq_context*, uint64_t module, const char* layer, const sq_tensor* x, const sq_tensor* y, sq_error*);
  sq_status (*destroy)(sq_context*, uint64_t module, sq_error*);
} sq_module_group;

/* ------------------------------------------------------------------ the implementation */

typedef struct sq_implementation {
  uint32_t size;
  uint32_t abi_version;
  const char* name;    /* "reference" */
  const char* version; /* semantic version of the implementation */
  sq_status (*create)(const sq_host*, sq_context**, sq_error*);
  void (*destroy)(sq_context*);
  /* One JSON object: {"name","version","abi_version","device":"cpu"|"cuda","deterministic":bool,"groups":["linear","lora",...],
   * "operations":[...],"formats":["bp8_v2"],"activation_dtypes":["f32","bf16"],"rounding_classes":["R1"],"details":{...}}.
   * "usable": false with "reason" where this machine cannot run it. context may be NULL: then about the machine in general. */
  sq_status (*describe)(sq_context*, sq_text_sink, void* sink_user, sq_error*);
  const sq_linear_group* linear;       /* any group may be NULL */
  const sq_stream_group* stream;
  const sq_telemetry_group* telemetry;
  const sq_format_group* format;
  const sq_module_group* module;
} sq_implementation;

/* The one symbol that a shared library exports. Returns NULL where it cannot serve `host_abi_version`; `own_abi_version` is
 * filled in either case, so that the refusal can name both numbers. */
typedef const sq_implementation* (*sq_get_implementation)(uint32_t host_abi_version, uint32_t* own_abi_version);
#define SQ_ENTRY_POINT "squareq_implementation"

#ifdef __cplusplus
}
#endif
#endif
