// The stream engine of the CUDA backend on a real link: the rate of its copies against plain ones, copies beside compute, what a step waits for, and
// what a lease costs on the compute stream. FLUX.1-dev's blocks; sessions as the trainer opens them (a host master, one copy per block).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda/arguments.hpp"
#include "bench/cuda/cublas.hpp"
#include "bench/cuda/streamed_model.hpp"
#include "bench/cuda/timing.hpp"

namespace squareq::bench {
namespace {

constexpr std::string_view kUsage =
    "cuda_transfer_bench: the stream engine of the CUDA backend on FLUX.1-dev's blocks, on device 0\n"
    "  --blocks N          of the model's 57, 4 at least (default 57: 11.9 GB of page-locked memory)\n"
    "  --slots LIST        slots of a step (default 2,4,8,16,32,57, as far as there are blocks)\n"
    "  --compute-us LIST   compute of a block's forward in a step; its backward takes twice that (default 600,2100: 512^2 and 1024^2 on an H200)\n"
    "  --rounds N          (default 5)\n"
    "  --json FILE         every number\n"
    "Exit status: 0 done, 2 wrong arguments, 3 no GPU or failed.\n";

constexpr int kUnits = 4;            // sets of operands of the compute's product
constexpr int kHeldUpMs = 8;         // work before a measured stretch of the compute stream, so that the host has queued the stretch when it begins
constexpr int kWarmPasses = 2;       // the first fills the slots, the second is the first of the steady state

using Clock = std::chrono::steady_clock;

double microseconds(Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }

class Event {
 public:
  Event() { require(cudaEventCreate(&event_), "events"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { require(cudaEventRecord(event_, stream), "events"); }
  /// Milliseconds from `earlier` to this one; waits for both.
  double since(const Event& earlier) const {
    require(cudaEventSynchronize(earlier.event_), "timing");
    require(cudaEventSynchronize(event_), "timing");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, earlier.event_, event_), "events");
    return static_cast<double>(ms);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

struct Stream {
  Stream() { require(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "stream"); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};

double gigabytes_per_second(std::uint64_t bytes, double ms) { return static_cast<double>(bytes) / ms / 1e6; }

/// The highest of the smallest 99 percent.
double most_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) * 99 / 100];
}

/// Compute of any length: a bf16 product of about 40 us, as often as is wanted.
class Compute {
 public:
  Compute(const Random& random, cudaStream_t stream)
      : stream_(stream), product_(kRows, kSide, kSide, true, Epilogue::none, stream), x_(2 * kUnits * kRows * kSide), w_(2 * kUnits * kSide * kSide),
        y_(2 * kUnits * kRows * kSide) {
    random.fill(x_, SQ_BF16, 1), random.fill(w_, SQ_BF16, 2);
    require(cudaDeviceSynchronize(), "filling");
    std::vector<ProductOperands> sets;
    for (int i = 0; i < kUnits; ++i) sets.push_back(operands(i));
    product_.choose(sets);
    const auto graph = make(64);
    Event begin, end;
    for (int launch = 0; launch < 64; ++launch) {
      if (launch == 32) begin.record(stream);
      graph->launch(0);
    }
    end.record(stream);
    unit_us_ = 1e3 * end.since(begin) / 32 / 64;
  }

  double unit_us() const { return unit_us_; }
  void queue_unit(int i) const { product_.queue(operands(i % kUnits)); }
  /// A graph that computes for about so long.
  std::unique_ptr<Graphs> for_us(double us) const { return make(std::max(1, static_cast<int>(std::lround(us / unit_us_)))); }

 private:
  static constexpr std::int64_t kRows = 1536, kSide = 3072;

  ProductOperands operands(int i) const {
    const auto at = [i](const Buffer& buffer) { return static_cast<unsigned char*>(buffer.data()) + buffer.bytes() / kUnits * static_cast<std::size_t>(i); };
    return {at(x_), at(w_), at(y_)};
  }
  std::unique_ptr<Graphs> make(int units) const {
    return std::make_unique<Graphs>(std::vector<Route>{{"compute", [this](int i) { queue_unit(i); }}}, units, stream_);
  }

  cudaStream_t stream_;
  CublasProduct product_;
  Buffer x_, w_, y_;
  double unit_us_ = 0;
};

class TransferBench {
 public:
  TransferBench(std::uint32_t blocks, int rounds)
      : rounds_(rounds), model_(blocks), master_(model_.total()), shared_(master_), allocator_(shared_.table()), context_(open_backend(&allocator_)),
        compute_(random_, compute_stream_.handle), held_up_(compute_.for_us(1e3 * kHeldUpMs)) {}

  /// Passes without compute, two slots: copies end to end. Against the same bytes in copies of the same sizes, queued at once.
  nlohmann::ordered_json link() {
    const auto visits = ring(model_.size(), 2, false);
    const std::vector<sq_schedule> schedules = {schedule(visits)};
    StreamSession session(context_, model_.open_args(2, schedules));
    const Buffer slots(2 * model_.largest());
    walk(session, visits);
    plain_copies(slots);
    std::vector<double> engine, plain, shares;
    const std::uint64_t before = session.stats().loaded_bytes;
    for (int round = 0; round < rounds_; ++round) {
      engine.push_back(walk(session, visits));
      plain.push_back(plain_copies(slots));
      shares.push_back(plain.back() / engine.back());
    }
    const std::uint64_t loaded = session.stats().loaded_bytes - before, expected = model_.total() * static_cast<std::uint64_t>(rounds_);
    if (loaded != expected)
      throw Error(Code::INTERNAL, "the engine loaded " + std::to_string(loaded) + " bytes, " + std::to_string(expected) + " were to be copied");
    copies_ms_ = median(engine);
    plain_rate_ = gigabytes_per_second(model_.total(), median(plain));
    return {{"bytes", model_.total()}, {"copies", model_.size()}, {"engine_gb_s", gigabytes_per_second(model_.total(), copies_ms_)},
            {"plain_gb_s", plain_rate_}, {"share", median(shares)}, {"engine_ms", copies_ms_}, {"plain_ms", median(plain)}};
  }

  /// The same pass on a stream of its own, beside compute that takes as long.
  nlohmann::ordered_json overlap() {
    const auto visits = ring(model_.size(), 2, false);
    const std::vector<sq_schedule> schedules = {schedule(visits)};
    StreamSession session(context_, model_.open_args(2, schedules));
    const auto graph = compute_.for_us(1e3);
    const int launches = std::max(1, static_cast<int>(copies_ms_ * 1e3 / (compute_.unit_us() * graph->sets())));
    const auto compute = [&](Event& begin, Event& end) {
      begin.record(compute_stream_.handle);
      for (int i = 0; i < launches; ++i) graph->launch(0);
      end.record(compute_stream_.handle);
    };
    walk(session, visits);
    std::vector<double> compute_alone, copies_alone, compute_beside, copies_beside, both;
    for (int round = 0; round < rounds_; ++round) {
      Event begin, end, copies_begin, copies_end;
      compute(begin, end);
      compute_alone.push_back(end.since(begin));
      copies_alone.push_back(walk(session, visits));
      compute(begin, end);
      queue_walk(session, visits, copies_begin, copies_end);
      compute_beside.push_back(end.since(begin));
      copies_beside.push_back(copies_end.since(copies_begin));
      both.push_back(std::max(end.since(begin), copies_end.since(begin)));
    }
    return {{"compute_alone_ms", median(compute_alone)}, {"copies_alone_ms", median(copies_alone)}, {"compute_beside_copies_ms", median(compute_beside)},
            {"copies_beside_compute_ms", median(copies_beside)}, {"both_ms", median(both)}};
  }

  /// A training step over all blocks: forward and then backward, each visit acquired, computed on, released. Against the same compute without leases.
  nlohmann::ordered_json steps(const std::vector<std::int64_t>& slot_counts, const std::vector<std::int64_t>& compute_us) {
    auto all = nlohmann::ordered_json::array();
    for (const std::int64_t slots : slot_counts) {
      const auto count = static_cast<std::uint32_t>(slots);
      const auto visits = ring(model_.size(), count, true);
      const std::vector<sq_schedule> schedules = {schedule(visits)};
      StreamSession session(context_, model_.open_args(count, schedules));
      for (const std::int64_t us : compute_us) {
        all.push_back(step(session, visits, static_cast<double>(us)));
        all.back()["slots"] = slots;
        all.back()["asked_compute_us"] = us;
        print_step(all.back());
      }
    }
    return all;
  }

  /// Every block in a slot of its own, so that nothing is copied but in the first pass.
  nlohmann::ordered_json lease() {
    const auto visits = ring(model_.size(), model_.size(), false);
    const std::vector<sq_schedule> schedules = {schedule(visits)};
    std::vector<double> there, ahead, between, acquire, release;
    double stalled_ms = 0;
    for (int round = 0; round < rounds_; ++round) {
      StreamSession session(context_, model_.open_args(model_.size(), schedules));
      // First pass: the host takes the leases while the copies are still under way; the compute stream comes to them later.
      ahead.push_back(leases_us(session, visits, 2 * copies_ms_, nullptr, nullptr));
      stalled_ms = std::max(stalled_ms, last_step(session).stall_time_ms);
      for (int pass = 0; pass < 3; ++pass) {
        there.push_back(leases_us(session, visits, kHeldUpMs, &acquire, &release));
        between.push_back(between_kernels_us(session, visits));
      }
    }
    return {{"visits", model_.size()}, {"stream_us", median(there)}, {"stream_us_host_ahead", median(ahead)}, {"between_kernels_us", median(between)},
            {"acquire_host_us", median(acquire)}, {"acquire_host_us_p99", most_of(acquire)}, {"release_host_us", median(release)},
            {"release_host_us_p99", most_of(release)}, {"host_ahead_stall_ms", stalled_ms}};
  }

  std::uint64_t bytes() const { return model_.total(); }

 private:
  /// One pass on the side stream without work between acquire and release.
  void queue_walk(StreamSession& session, const std::vector<sq_visit>& visits, Event& begin, Event& end) {
    begin.record(side_.handle);
    session.begin_step(0);
    for (const sq_visit& v : visits) Lease lease(session, v.block, side_.handle);
    session.end_step();
    end.record(side_.handle);
  }
  double walk(StreamSession& session, const std::vector<sq_visit>& visits) {
    Event begin, end;
    queue_walk(session, visits, begin, end);
    return end.since(begin);
  }

  double plain_copies(const Buffer& slots) {
    Event begin, end;
    begin.record(side_.handle);
    std::uint64_t offset = 0;
    for (std::uint32_t b = 0; b < model_.size(); ++b) {
      auto* slot = static_cast<unsigned char*>(slots.data()) + (b % 2) * model_.largest();
      require(cudaMemcpyAsync(slot, master_.data() + offset, model_.bytes(b), cudaMemcpyHostToDevice, side_.handle), "copying");
      offset += model_.bytes(b);
    }
    end.record(side_.handle);
    return end.since(begin);
  }

  nlohmann::ordered_json step(StreamSession& session, const std::vector<sq_visit>& visits, double us) {
    const auto graph = compute_.for_us(us);
    const cudaStream_t stream = compute_stream_.handle;
    const auto compute = [&](std::size_t visit) {
      for (int pass = 0; pass < (visit < visits.size() / 2 ? 1 : 2); ++pass) graph->launch(0);  // recompute and dX: twice the forward
    };
    const auto alone = [&] {
      Event begin, end;
      begin.record(stream);
      for (std::size_t v = 0; v < visits.size(); ++v) compute(v);
      end.record(stream);
      return end.since(begin);
    };
    const auto streamed = [&] {
      Event begin, end;
      begin.record(stream);
      session.begin_step(0);
      for (std::size_t v = 0; v < visits.size(); ++v) {
        const Lease lease(session, visits[v].block, stream);
        compute(v);
      }
      session.end_step();
      end.record(stream);
      return end.since(begin);
    };
    for (int pass = 0; pass < kWarmPasses; ++pass) streamed();
    std::vector<double> compute_ms, step_ms, exposed_ms;
    const std::uint64_t before = session.stats().loaded_bytes;
    for (int round = 0; round < rounds_; ++round) {
      compute_ms.push_back(alone());
      step_ms.push_back(streamed());
      exposed_ms.push_back(step_ms.back() - compute_ms.back());
    }
    const std::uint64_t loaded = (session.stats().loaded_bytes - before) / static_cast<std::uint64_t>(rounds_);
    const double link_ms = static_cast<double>(loaded) / plain_rate_ / 1e6;
    return {{"compute_ms", median(compute_ms)}, {"step_ms", median(step_ms)}, {"exposed_ms", median(exposed_ms)}, {"loaded_bytes", loaded},
            {"link_ms", link_ms}, {"floor_ms", std::max(0.0, link_ms - median(compute_ms))}};
  }

  void hold_up(double ms) {
    for (double held = 0; held < ms; held += compute_.unit_us() * held_up_->sets() / 1e3) held_up_->launch(0);
  }

  /// Microseconds that a lease (acquire and release) takes on the compute stream, all of a pass queued before the device comes to the first.
  double leases_us(StreamSession& session, const std::vector<sq_visit>& visits, double held_up_ms, std::vector<double>* acquire,
                   std::vector<double>* release) {
    const cudaStream_t stream = compute_stream_.handle;
    Event begin, end;
    hold_up(held_up_ms);
    begin.record(stream);
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      const Clock::time_point asked = Clock::now();
      Lease lease(session, v.block, stream);
      const Clock::time_point given = Clock::now();
      lease.release();
      if (acquire) acquire->push_back(microseconds(given - asked)), release->push_back(microseconds(Clock::now() - given));
    }
    session.end_step();
    end.record(stream);
    return 1e3 * end.since(begin) / static_cast<double>(visits.size());
  }

  /// What leases around kernels add to the kernels.
  double between_kernels_us(StreamSession& session, const std::vector<sq_visit>& visits) {
    const cudaStream_t stream = compute_stream_.handle;
    Event begin, middle, end;
    hold_up(kHeldUpMs);
    begin.record(stream);
    for (std::size_t v = 0; v < visits.size(); ++v) compute_.queue_unit(static_cast<int>(v));
    middle.record(stream);
    session.begin_step(0);
    for (std::size_t v = 0; v < visits.size(); ++v) {
      const Lease lease(session, visits[v].block, stream);
      compute_.queue_unit(static_cast<int>(v));
    }
    session.end_step();
    end.record(stream);
    const double plain = middle.since(begin);
    return 1e3 * (end.since(middle) - plain) / static_cast<double>(visits.size());
  }

  sq_step_metrics last_step(const StreamSession& session) const {
    auto metrics = sized<sq_step_metrics>();
    sq_error e = make_error();
    check(context_.telemetry().last_step(context_.get(), session.id(), &metrics, &e), e);
    return metrics;
  }

  static void print_step(const nlohmann::ordered_json& s) {
    std::printf("step: %2ld slots, %4ld us per block: compute %6.1f ms, step %6.1f, exposed %6.1f (link's floor %6.1f), %.2f GB loaded\n",
                s.at("slots").get<long>(), s.at("asked_compute_us").get<long>(), s.at("compute_ms").get<double>(), s.at("step_ms").get<double>(), s.at("exposed_ms").get<double>(),
                s.at("floor_ms").get<double>(), s.at("loaded_bytes").get<double>() / 1e9);
    std::fflush(stdout);
  }

  int rounds_;
  StreamedModel model_;
  PinnedBuffer master_;
  SharedMemory shared_;
  sq_allocator allocator_;
  Context context_;
  Random random_;
  Stream compute_stream_, side_;
  Compute compute_;
  std::unique_ptr<Graphs> held_up_;
  double copies_ms_ = 0, plain_rate_ = 0;
};

/// A guess, for the person who waits: page-locking, then passes at 55 GB/s or at the speed of the compute.
double estimate_seconds(double bytes, std::uint32_t blocks, int rounds, const std::vector<std::int64_t>& slots,
                        const std::vector<std::int64_t>& compute_us) {
  const double pass = bytes / 55e9;
  double seconds = 5 + bytes * 0.4e-9 + (2 * rounds + 2) * pass + rounds * 3.2 * pass + rounds * 3 * pass;
  for (const std::int64_t c : slots)
    for (const std::int64_t us : compute_us) {
      const double compute = 3e-6 * static_cast<double>(us) * blocks, loads = 2 * pass * (1 - static_cast<double>(c) / blocks);
      seconds += rounds * compute + (rounds + kWarmPasses) * std::max(compute, loads);
    }
  return seconds;
}

void body(int argc, char** argv) {
  const Arguments arguments(argc, argv, {"--blocks", "--slots", "--compute-us", "--rounds", "--json"});
  const auto blocks = static_cast<std::uint32_t>(arguments.number("--blocks", "57", 4, StreamedModel::kBlocks));
  std::vector<std::int64_t> slots = arguments.numbers("--slots", "2,4,8,16,32,57", 1, StreamedModel::kBlocks);
  for (const std::int64_t c : slots)
    if (arguments.given("--slots") && c > blocks)
      throw Error(Code::CFG_VALUE, "--slots names " + std::to_string(c) + ", there are " + std::to_string(blocks) + " blocks");
  std::erase_if(slots, [blocks](std::int64_t c) { return c > blocks; });
  const auto compute_us = arguments.numbers("--compute-us", "600,2100", 1, 1000000);
  const int rounds = static_cast<int>(arguments.number("--rounds", "5", 1, 1000));
  const Device device = use_device();
  ResultFile file(arguments.text("--json", ""));

  std::printf("%s, %u blocks, about %.0f s\n", device.name.c_str(), blocks,
              estimate_seconds(static_cast<double>(StreamedModel(blocks).total()), blocks, rounds, slots, compute_us));
  std::fflush(stdout);
  TransferBench bench(blocks, rounds);
  nlohmann::ordered_json all = {{"bench", "transfers"}, {"rounds", rounds}, {"device", device.json()}, {"model", "FLUX.1-dev"}, {"blocks", blocks}};
  const auto number = [&](const char* part, const char* key) { return all.at(part).at(key).get<double>(); };
  all["link"] = bench.link();
  std::printf("link: engine %.1f GB/s, plain copies %.1f GB/s, share %.3f\n", number("link", "engine_gb_s"), number("link", "plain_gb_s"),
              number("link", "share"));
  all["overlap"] = bench.overlap();
  std::printf("overlap: compute %.1f ms alone, %.1f beside copies; copies %.1f ms alone, %.1f beside compute; both %.1f ms\n",
              number("overlap", "compute_alone_ms"), number("overlap", "compute_beside_copies_ms"), number("overlap", "copies_alone_ms"),
              number("overlap", "copies_beside_compute_ms"), number("overlap", "both_ms"));
  all["steps"] = bench.steps(slots, compute_us);
  all["lease"] = bench.lease();
  std::printf("lease on the compute stream: %.2f us (%.2f with the host ahead, %.2f between kernels); on the host: acquire %.1f us, release %.1f us\n",
              number("lease", "stream_us"), number("lease", "stream_us_host_ahead"), number("lease", "between_kernels_us"),
              number("lease", "acquire_host_us"), number("lease", "release_host_us"));
  file.write(all);
}

}  // namespace
}  // namespace squareq::bench

int main(int argc, char** argv) { return squareq::bench::run_program(argc, argv, "cuda_transfer_bench", squareq::bench::kUsage, squareq::bench::body); }
