// mac_limit: how many int8 multiply-accumulates a second this CPU's vector or matrix units can do.
//
//   mac_limit THREADS  ->  vpdpbusd 227841234567
//
// One line: the instruction that is fastest here, and multiply-accumulates a second of all threads
// together. Sums stay in registers, so memory and caches play no part, and no kernel is faster.
// All factors are 1, so the sums themselves say how many products were added.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <thread>
#include <vector>

namespace {

constexpr int kSteps = 1'000'000;  // a few ms; no lane of 32 bits gets to its end
constexpr int kRepeats = 100;

// The compiler may not reckon what comes out.
#define OPAQUE(value) asm volatile("" : "+v"(value))

// Returns from the function, which defines Vector. Twelve sums do not wait for each other: an
// instruction takes up to 5 cycles, two may start in each, and AVX2 has 16 registers. They are
// variables, since an array would be kept in memory.
#define RETURN_COUNT_OF(STEP)                                                               \
  Vector a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{}, i{}, j{}, k{}, l{};                        \
  for (int count = 0; count < kSteps; ++count) {                                            \
    STEP(a)                                                                                 \
    STEP(b) STEP(c) STEP(d) STEP(e) STEP(f) STEP(g) STEP(h) STEP(i) STEP(j) STEP(k) STEP(l) \
  }                                                                                         \
  return sumOfLanes<Vector>({a, b, c, d, e, f, g, h, i, j, k, l})

template <typename Vector>
int64_t sumOfLanes(std::initializer_list<Vector> sums) {
  int64_t total = 0;
  for (const Vector& sum : sums) {
    int32_t lanes[16] = {};
    static_assert(sizeof(sum) <= sizeof(lanes));
    std::memcpy(lanes, &sum, sizeof(sum));
    total = std::accumulate(std::begin(lanes), std::end(lanes), total);
  }
  return total;
}

#define VNNI512(sum)                          \
  sum = _mm512_dpbusd_epi32(sum, ones, ones); \
  OPAQUE(sum);

__attribute__((target("avx512f,avx512vnni"))) int64_t vnni512() {
  using Vector = __m512i;
  const Vector ones = _mm512_set1_epi32(0x01010101);
  RETURN_COUNT_OF(VNNI512);
}

#define VNNI256(sum)                          \
  sum = _mm256_dpbusd_epi32(sum, ones, ones); \
  OPAQUE(sum);

__attribute__((target("avx512f,avx512vl,avx512vnni"))) int64_t vnni256() {
  using Vector = __m256i;
  const Vector ones = _mm256_set1_epi8(1);
  RETURN_COUNT_OF(VNNI256);
}

#define AVX_VNNI(sum)                             \
  sum = _mm256_dpbusd_avx_epi32(sum, ones, ones); \
  OPAQUE(sum);

__attribute__((target("avx2,avxvnni"))) int64_t avxVnni() {
  using Vector = __m256i;
  const Vector ones = _mm256_set1_epi8(1);
  RETURN_COUNT_OF(AVX_VNNI);
}

// Without VNNI it takes three instructions: products added in 16 bits, those in 32, and all of it.
#define AVX2(sum)                                                                                  \
  sum =                                                                                            \
      _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, ones), ones_of_16_bits)); \
  OPAQUE(sum);                                                                                     \
  OPAQUE(ones); /* or one product would serve all sums */

__attribute__((target("avx2"))) int64_t avx2() {
  using Vector = __m256i;
  const Vector ones_of_16_bits = _mm256_set1_epi16(1);
  Vector ones = _mm256_set1_epi8(1);
  RETURN_COUNT_OF(AVX2);
}

// AMX: each instruction multiplies two tiles of 16 rows of 64 bytes. Six sums do not wait for each
// other: an instruction takes 52 cycles, and one may start in every 16.
__attribute__((target("amx-tile,amx-int8"))) int64_t amx() {
  struct {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes_of_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shapes;
  _tile_loadconfig(&shapes);
  uint8_t ones[16][64];
  std::memset(ones, 1, sizeof(ones));
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int count = 0; count < kSteps / 10; ++count) {  // as many ms as the others
    _tile_dpbusd(0, 6, 7);
    _tile_dpbusd(1, 6, 7);
    _tile_dpbusd(2, 6, 7);
    _tile_dpbusd(3, 6, 7);
    _tile_dpbusd(4, 6, 7);
    _tile_dpbusd(5, 6, 7);
  }
  int32_t sums[6][16 * 16];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_stored(4, sums[4], 64);
  _tile_stored(5, sums[5], 64);
  _tile_release();
  return std::accumulate(&sums[0][0], &sums[0][0] + 6 * 16 * 16, int64_t{0});
}

// Linux lets a process use tiles only if it asks.
bool mayUseTiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct Kernel {
  const char* name;
  bool supported;
  int64_t (*run)();  // returns the number of multiply-accumulates
};

double seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// Multiply-accumulates a second, the best of some repeats: whatever else runs only takes away.
double rate(const Kernel& kernel, int threads) {
  std::vector<int64_t> counts(threads);
  double best = 0;
  double start = 0;
  bool starts = true;
  const auto meet = [&]() noexcept {  // runs once, when the last thread has come
    if (starts) {
      start = seconds();
    } else {
      const auto total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
      best = std::max(best, static_cast<double>(total) / (seconds() - start));
    }
    starts = !starts;
  };
  std::barrier barrier(threads, meet);
  std::vector<std::thread> running;
  for (int index = 0; index < threads; ++index) {
    running.emplace_back([&, index] {
      for (int repeat = 0; repeat < kRepeats; ++repeat) {
        barrier.arrive_and_wait();
        counts[index] = kernel.run();
        barrier.arrive_and_wait();
      }
    });
  }
  for (auto& thread : running) {
    thread.join();
  }
  return best;
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count == 2 ? std::atoi(arguments[1]) : 0;
  if (threads < 1) {
    std::fprintf(stderr, "usage: mac_limit THREADS\n");
    return 2;
  }
  const bool vnni = __builtin_cpu_supports("avx512vnni") != 0;
  const bool tiles = __builtin_cpu_supports("amx-int8") != 0 && mayUseTiles();
  const Kernel kernels[] = {
      {"tdpbusd", tiles, amx},
      {"vpdpbusd", vnni, vnni512},
      {"vpdpbusd", vnni && __builtin_cpu_supports("avx512vl") != 0, vnni256},
      {"vpdpbusd", __builtin_cpu_supports("avxvnni") != 0, avxVnni},
      {"vpmaddubsw", __builtin_cpu_supports("avx2") != 0, avx2},
  };
  const char* fastest = nullptr;
  double best = 0;
  for (const Kernel& kernel : kernels) {
    const double reached = kernel.supported ? rate(kernel, threads) : 0;
    if (reached > best) {
      best = reached;
      fastest = kernel.name;
    }
  }
  if (fastest == nullptr) {
    std::fprintf(stderr, "this CPU has neither VNNI nor AVX2\n");
    return 1;
  }
  std::printf("%s %.0f\n", fastest, best);
}
