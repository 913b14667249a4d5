// The trainable transformer as the trainer, the sampler and the `forward` command see it: frozen weights of a float checkpoint or of a
// slab (streamed block by block through a backend), LoRA adapters on top, one forward with diffusers' argument names.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/contract.h"

namespace squareq::training {

/// Arguments of the diffusers class's forward. B batch, L image tokens, T text tokens.
struct ForwardInputs {
  torch::Tensor hidden_states;          ///< [B, L, in_channels]
  torch::Tensor encoder_hidden_states;  ///< [B, T, joint_attention_dim]
  torch::Tensor pooled_projections;     ///< [B, pooled_projection_dim]
  torch::Tensor timestep;               ///< [B], sigma in [0, 1]; the model multiplies by 1000 itself
  torch::Tensor guidance;               ///< [B], plain scale; undefined for a model without guidance embedding, required otherwise
  torch::Tensor img_ids;                ///< [L, axes]
  torch::Tensor txt_ids;                ///< [T, axes]
};

/// What the model is: diffusers' config fields (facts: models 3).
struct ModelConfig {
  std::string architecture;  ///< id of registry/architectures.json, "flux1"
  std::int64_t patch_size = 1, in_channels = 0, out_channels = 0;
  std::int64_t num_layers = 0, num_single_layers = 0;
  std::int64_t attention_head_dim = 0, num_attention_heads = 0;
  std::int64_t joint_attention_dim = 0, pooled_projection_dim = 0;
  bool guidance_embeds = false;
  std::vector<std::int64_t> axes_dims_rope;

  std::int64_t hidden_size() const { return attention_head_dim * num_attention_heads; }
};

/// A low-rank branch of one layer: y += alpha / rank * (x A) B. FP32 masters, leaf tensors; memory holds the transposes.
struct Adapter {
  std::string layer;  ///< diffusers name ("transformer_blocks.0.attn.to_q") or a fused BFL name ("double_blocks.0.img_attn.qkv")
  double alpha = 0;
  torch::Tensor a_t;  ///< [rank, in] F32
  torch::Tensor b_t;  ///< [out, rank] F32

  std::int64_t rank() const { return a_t.size(0); }
  double scaling() const { return alpha / static_cast<double>(rank()); }
};

/// Adapters ordered by layer name. The order is that of parameters(), of optimizer state and of files.
class AdapterSet {
 public:
  /// Throws LR_KEY (layer given twice), LR_SHAPE (not 2-D, ranks differ; both shapes named) or LR_PAIR (one matrix undefined).
  void add(Adapter adapter);
  const Adapter* find(std::string_view layer) const;
  const std::map<std::string, Adapter, std::less<>>& all() const { return adapters_; }
  bool empty() const { return adapters_.empty(); }
  std::size_t size() const { return adapters_.size(); }
  /// a_t, b_t of every layer, in order: everything that may be trained.
  std::vector<torch::Tensor> parameters() const;
  void require_grad(bool on);

  /// Dropout on the branch's input. Masks depend on (seed, layer name) alone, so that a recomputed block drops the same elements;
  /// the trainer sets a new seed for every forward. 0 turns it off.
  double dropout = 0;
  std::uint64_t dropout_seed = 0;

 private:
  std::map<std::string, Adapter, std::less<>> adapters_;
};

/// One Linear layer of the model under its diffusers name. `block` counts the repeated blocks in execution order (FLUX.1: double
/// blocks, then single blocks), -1 for a layer outside them.
struct LinearInfo {
  std::string name;
  std::int64_t in = 0, out = 0;
  std::int64_t block = -1;
};

/// (done bytes, total bytes, what)
using Progress = std::function<void(std::uint64_t, std::uint64_t, std::string_view)>;

class Shadow;

struct OpenOptions {
  std::filesystem::path source;                 ///< float checkpoint (file, index or folder) or slab (file, manifest or stem)
  std::optional<std::filesystem::path> base;    ///< checkpoint a bare slab was made from: norms and whatever else a slab pair lacks
  std::optional<std::filesystem::path> config;  ///< config.json that overrides the one found beside the source
  std::string backend = "auto";                 ///< for slabs: auto, reference, cpu, cuda or a path to a shared library
  std::uint64_t budget = 0;                     ///< bytes of weights on the device: slots, residents, layers outside blocks; 0 = no limit
  std::int64_t resident_blocks = 0;             ///< slots in all, copies in flight included; 0 = all blocks stay resident
  torch::Dtype dtype = torch::kFloat32;         ///< of activations: F32 or BF16 (F16 too; F64 with float checkpoints only)
  std::int32_t compute = SQ_COMPUTE_DEFAULT;    ///< sq_compute of every quantized linear; SQ_COMPUTE_W8A8 for slabs only (CFG_VALUE)
  bool deterministic = true;                    ///< false: attention's backward on a GPU may add in any order (SQ-TRN-049)
  bool checkpointing = true;                    ///< recompute blocks in backward instead of keeping their activations
  unsigned threads = 0;                         ///< backend threads; 0 = all cores
  bool verify = true;                           ///< compare companion checksums when a block's bytes are first read
  bool poison_slots = false;                    ///< fill released slots with 0xA5 before reuse (tests)
  Progress progress;                            ///< may be empty
  std::shared_ptr<Shadow> shadow;               ///< computes every quantized linear a second time and compares; null: not
};

enum class Pass { train, forward };

/// A model whose weights never train. One forward (and backward) at a time; not thread-safe, except that libtorch may run backward
/// on a thread of its own. Streamed weights are bit for bit those of a resident run, so are outputs and gradients.
class Transformer {
 public:
  /// Opens a float checkpoint (plain libtorch) or a slab (through the contract). Throws MD_ARCH, MD_TENSOR, MD_LAYER, MD_BASE,
  /// CFG_BACKEND, CFG_BUDGET and the codes of the file readers, before anything is computed.
  static std::unique_ptr<Transformer> open(const OpenOptions& options);
  virtual ~Transformer() = default;

  /// sample [B, L, patch_size^2 * out_channels] in the options' dtype. Differentiable in every floating input and in the adapters.
  /// Only between begin_pass and end_pass, once per pass (CALL_STATE). Throws MD_TENSOR / CALL_SHAPE / CALL_VALUE for wrong inputs:
  /// a missing or superfluous guidance, a shape that does not fit, both values named.
  virtual torch::Tensor forward(const ForwardInputs& inputs) = 0;

  /// A train pass is one forward and its backward; a forward pass is one forward under no_grad.
  virtual void begin_pass(Pass pass) = 0;
  /// `abandoned`: an error ended the pass early; every lease is given up.
  virtual void end_pass(bool abandoned = false) = 0;

  /// Every Linear of the model, in execution order.
  virtual std::vector<LinearInfo> linears() const = 0;
  /// The set must outlive its use here; nullptr removes it. Throws LR_KEY (layer matches nothing, or is covered twice) or LR_SHAPE
  /// (both shapes named) and then keeps the old set. Not inside a pass.
  virtual void set_adapters(AdapterSet* adapters) = 0;

  virtual const ModelConfig& config() const = 0;
  /// The recognised architecture in the source's own naming scheme: blocks, and the maps between naming schemes (LoRA files).
  virtual const Architecture& architecture() const = 0;
  virtual std::int64_t block_count() const = 0;
  virtual torch::Device device() const = 0;
  virtual torch::Dtype dtype() const = 0;
  /// "reference", "cpu", ...; "libtorch" for a float checkpoint.
  virtual std::string backend_name() const = 0;
  /// SHA-256 (hex) of the slab's manifest file, the identity that checkpoints of a run record; empty for a float checkpoint.
  virtual std::string slab_id() const = 0;
  /// Zeros for a float checkpoint.
  virtual sq_stream_stats stream_stats() const = 0;
  virtual sq_step_metrics last_step() const = 0;
};

/// A pass that is abandoned unless finish() was reached.
class PassScope {
 public:
  PassScope(Transformer& model, Pass pass) : model_(&model) { model.begin_pass(pass); }
  PassScope(const PassScope&) = delete;
  PassScope& operator=(const PassScope&) = delete;
  ~PassScope();
  void finish();

 private:
  Transformer* model_;
};

/// "f32", "bf16", "f16" or "f64" as a libtorch dtype; anything else is CFG_VALUE.
torch::Dtype parse_dtype(std::string_view name);

}  // namespace squareq::training
