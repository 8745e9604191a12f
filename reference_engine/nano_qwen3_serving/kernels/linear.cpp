// Products x @ weight.T in bfloat16, for processors with AVX-512 BF16; with AMX, where the processor has that too.
//
// The weight is rearranged once, into panels of 48 outputs: a panel has, for every two inputs, the pairs of
// weights of its 48 outputs side by side, [inputs / 2, 48, 2], which is the order in which they are read. A tile
// is 8 rows of x by one panel: 24 registers of sums, and three of weights. While one panel is used the next is
// fetched, so the arithmetic of many rows and the memory of the weights do not wait for each other.
//
// A row's sums are added up in the order of the inputs, whatever rows lie beside it, and rounded once.
//
// AMX multiplies up to 16 rows by 16 outputs over 32 inputs in one instruction. The panels are as it wants them: 16 of
// their lines, each with the pairs of 16 outputs, are one register of weights. Such a processor is ten times slower without.

#include "kernels.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#ifdef __AVX512BF16__
#include <immintrin.h>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nano_qwen3 {

using at::BFloat16;

namespace {

constexpr int LANES = 16;
constexpr int VECTORS = 3;
constexpr int PANEL = VECTORS * LANES;  // outputs
constexpr int ROWS = 8;
constexpr int LINE = 64;  // bytes

// weight [outputs, inputs] -> [panels, inputs / 2, PANEL, 2]; outputs that there are not have weight 0
Tensor pack_weight(const Tensor& weight) {
  int64_t outputs = weight.size(0), inputs = weight.size(1), panels = (outputs + PANEL - 1) / PANEL;
  Tensor packed = at::empty({panels, inputs / 2, PANEL, 2}, weight.options());
  const BFloat16* from = weight.const_data_ptr<BFloat16>();
  BFloat16* to = packed.data_ptr<BFloat16>();
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++)
      for (int64_t pair = 0; pair < inputs / 2; pair++)
        for (int64_t i = 0; i < 2 * PANEL; i++) {
          int64_t output = panel * PANEL + i / 2, input = 2 * pair + i % 2;
          to[(panel * (inputs / 2) + pair) * 2 * PANEL + i] = output < outputs ? from[output * inputs + input] : BFloat16(0);
        }
  });
  return packed;
}

// What is fetched while something else is computed: from `next` on, `each` lines at every pair of inputs.
struct Ahead {
  const char* next;
  const char* end;
  int each;
};

struct Product {
  const BFloat16* x;     // its rows
  int64_t stride;        // from row to row
  int64_t pairs;         // of inputs
  BFloat16* out;         // [rows, outputs]
  int64_t outputs;
  const BFloat16* bias;  // [outputs], or none
};

// `COUNT` rows from `row` on, times one panel.
template <int COUNT>
void tile(const Product& p, int64_t row, const char* weights, int64_t first_output, Ahead& ahead) {
  __m512 sums[COUNT][VECTORS];
  for (int r = 0; r < COUNT; r++)
    for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_setzero_ps();
  const BFloat16* x = p.x + row * p.stride;
  int each = ahead.next < ahead.end ? ahead.each : 0;
  for (int64_t pair = 0; pair < p.pairs; pair++) {
    __m512bh w[VECTORS];
    for (int v = 0; v < VECTORS; v++) w[v] = (__m512bh)_mm512_loadu_si512(weights + (pair * VECTORS + v) * LINE);
    for (int i = 0; i < each; i++, ahead.next += LINE) _mm_prefetch(ahead.next, _MM_HINT_T1);
    for (int r = 0; r < COUNT; r++) {
      int32_t two;
      std::memcpy(&two, x + r * p.stride + 2 * pair, sizeof two);
      __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
      for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], inputs, w[v]);
    }
  }
  for (int v = 0; v < VECTORS && first_output + v * LANES < p.outputs; v++) {
    int64_t output = first_output + v * LANES;
    __m512 bias = _mm512_setzero_ps();
    if (p.bias) bias = _mm512_cvtpbh_ps((__m256bh)_mm256_loadu_si256((const __m256i*)(p.bias + output)));
    for (int r = 0; r < COUNT; r++) {
      __m256bh rounded = _mm512_cvtneps_pbh(_mm512_add_ps(sums[r][v], bias));
      _mm256_storeu_si256((__m256i*)(p.out + (row + r) * p.outputs + output), (__m256i)rounded);
    }
  }
}

#ifdef __AMX_BF16__

constexpr int BLOCK = 16;  // rows of a register, and pairs of inputs
constexpr int64_t CACHED_BYTES = 1 << 20;  // of x

// Whether this process may use the tile registers: Linux saves their state for those only that ask.
bool has_tiles() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl(2)
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return allowed;
}

// Eight registers of 16 rows of 64 bytes. Forgets what they hold.
void configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; t++) config.row_bytes[t] = LINE, config.rows[t] = BLOCK;
  asm volatile("" : : "r"(&config) : "memory");  // the intrinsic tells the compiler of eight bytes only
  _tile_loadconfig(&config);
}

// x [rows, inputs] -> [blocks, inputs / 32, 16, 32], each register's content side by side; rows that there are not are 0.
// Where they lie in x, 2,048 bytes apart or a multiple, they would push each other out of the first-level cache.
Tensor in_registers(const Product& p, int64_t rows, const Tensor& x) {
  int64_t blocks = (rows + BLOCK - 1) / BLOCK, steps = p.pairs / BLOCK;
  Tensor packed = at::empty({blocks, steps, BLOCK, 2 * BLOCK}, x.options());
  char* to = reinterpret_cast<char*>(packed.data_ptr<BFloat16>());
  at::parallel_for(0, blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * BLOCK; row < end * BLOCK; row++)
      for (int64_t step = 0; step < steps; step++) {
        __m512i line = _mm512_setzero_si512();
        if (row < rows) line = _mm512_loadu_si512(p.x + row * p.stride + step * 2 * BLOCK);
        _mm512_storeu_si512(to + ((row / BLOCK * steps + step) * BLOCK + row % BLOCK) * LINE, line);
      }
  });
  return packed;
}

void fetch(Ahead& ahead, int lines) {
  for (int i = 0; i < lines && ahead.next < ahead.end; i++, ahead.next += LINE) _mm_prefetch(ahead.next, _MM_HINT_T1);
}

// Adds the bias to sums [rows, 16], rounds them, and puts them where they belong.
void give(const Product& p, const float* sums, int64_t row, int64_t rows, int64_t output) {
  if (output >= p.outputs) return;
  __m512 bias = _mm512_setzero_ps();
  if (p.bias) bias = _mm512_cvtpbh_ps((__m256bh)_mm256_loadu_si256((const __m256i*)(p.bias + output)));
  for (int64_t r = 0; r < std::min<int64_t>(rows - row, BLOCK); r++) {
    __m256bh rounded = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_load_ps(sums + r * LANES), bias));
    _mm256_storeu_si256((__m256i*)(p.out + (row + r) * p.outputs + output), (__m256i)rounded);
  }
}

#define GIVE(REGISTER, ROW, VECTOR)   \
  _tile_stored(REGISTER, sums, LINE); \
  give(p, sums, ROW, rows, first_output + VECTOR * LANES)

// 16 rows from `row` on, times one panel. Registers: 0 to 2 sums, 3 x, 4 to 6 weights.
void few_rows(
    const Product& p, const char* x, int64_t row, int64_t rows, const char* weights, int64_t first_output, Ahead& ahead) {
  alignas(64) float sums[BLOCK * LANES];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  for (int64_t pair = 0; pair < p.pairs; pair += BLOCK, x += BLOCK * LINE, weights += BLOCK * VECTORS * LINE) {
    _tile_loadd(3, x, LINE);
    _tile_loadd(4, weights, VECTORS * LINE);
    _tile_loadd(5, weights + LINE, VECTORS * LINE);
    _tile_loadd(6, weights + 2 * LINE, VECTORS * LINE);
    fetch(ahead, ahead.each * BLOCK);
    _tile_dpbf16ps(0, 3, 4);
    _tile_dpbf16ps(1, 3, 5);
    _tile_dpbf16ps(2, 3, 6);
  }
  GIVE(0, row, 0);
  GIVE(1, row, 1);
  GIVE(2, row, 2);
}

// 32 rows from `row` on, times one panel. Registers: 0 to 5 sums, 6 x, 7 weights.
void many_rows(
    const Product& p, const char* x, int64_t row, int64_t rows, const char* weights, int64_t first_output, Ahead& ahead) {
  alignas(64) float sums[BLOCK * LANES];
  const char* lower = x + p.pairs * LINE;
  int lines = (ahead.each * BLOCK + 5) / 6;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t pair = 0; pair < p.pairs; pair += BLOCK, x += BLOCK * LINE, lower += BLOCK * LINE, weights += BLOCK * VECTORS * LINE) {
    _tile_loadd(7, weights, VECTORS * LINE);
    _tile_loadd(6, x, LINE);
    _tile_dpbf16ps(0, 6, 7);
    fetch(ahead, lines);
    _tile_loadd(6, lower, LINE);
    _tile_dpbf16ps(3, 6, 7);
    fetch(ahead, lines);
    _tile_loadd(7, weights + LINE, VECTORS * LINE);
    _tile_dpbf16ps(4, 6, 7);
    fetch(ahead, lines);
    _tile_loadd(6, x, LINE);
    _tile_dpbf16ps(1, 6, 7);
    fetch(ahead, lines);
    _tile_loadd(7, weights + 2 * LINE, VECTORS * LINE);
    _tile_dpbf16ps(2, 6, 7);
    fetch(ahead, lines);
    _tile_loadd(6, lower, LINE);
    _tile_dpbf16ps(5, 6, 7);
    fetch(ahead, lines);
  }
  GIVE(0, row, 0);
  GIVE(1, row, 1);
  GIVE(2, row, 2);
  GIVE(3, row + BLOCK, 0);
  GIVE(4, row + BLOCK, 1);
  GIVE(5, row + BLOCK, 2);
}

#undef GIVE

// All rows times the panels from `begin` to `end`: as many rows at a time as leave room in the second-level cache.
void multiply_in_tiles(const Product& p, const char* x, int64_t rows, const char* weights, int64_t begin, int64_t end) {
  int64_t panel_bytes = p.pairs * VECTORS * LINE, block_bytes = p.pairs * LINE;
  int64_t at_once = std::max<int64_t>(1, CACHED_BYTES / (2 * block_bytes)) * 2 * BLOCK;
  configure();
  for (int64_t first = 0; first < rows; first += at_once) {
    int64_t last = std::min(rows, first + at_once), passes = (last - first + 2 * BLOCK - 1) / (2 * BLOCK);
    int each = int((VECTORS + passes - 1) / passes);
    for (int64_t panel = begin; panel < end; panel++) {
      const char* here = weights + panel * panel_bytes;
      Ahead ahead{here + panel_bytes, panel + 1 < end ? here + 2 * panel_bytes : here, each};
      for (int64_t row = first; row < last; row += 2 * BLOCK)
        (last - row > BLOCK ? many_rows : few_rows)(
            p, x + row / BLOCK * block_bytes, row, rows, here, panel * PANEL, ahead);
    }
  }
  _tile_release();
}

#endif

using Tile = void (*)(const Product&, int64_t, const char*, int64_t, Ahead&);
constexpr Tile TILES[ROWS + 1] = {
    nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>};

}  // namespace

// x [rows, inputs], a packed weight and bias [outputs] -> [rows, outputs]; outputs are a multiple of 16
Tensor packed_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t outputs) {
  int64_t rows = x.size(0), pairs = x.size(1) / 2, panel_bytes = pairs * VECTORS * LINE;
  Tensor out = at::empty({rows, outputs}, x.options());
  Product product{x.const_data_ptr<BFloat16>(), x.stride(0), pairs, out.data_ptr<BFloat16>(), outputs,
                  bias ? bias->const_data_ptr<BFloat16>() : nullptr};
  const char* weights = reinterpret_cast<const char*>(packed.const_data_ptr<BFloat16>());
#ifdef __AMX_BF16__
  if (rows > 0 && pairs % BLOCK == 0 && has_tiles()) {
    Tensor registers = in_registers(product, rows, x);
    const char* inputs = reinterpret_cast<const char*>(registers.const_data_ptr<BFloat16>());
    at::parallel_for(0, packed.size(0), 1, [&](int64_t begin, int64_t end) {
      multiply_in_tiles(product, inputs, rows, weights, begin, end);
    });
    return out;
  }
#endif
  int64_t tiles = std::max<int64_t>(1, (rows + ROWS - 1) / ROWS);
  int each = int((VECTORS + tiles - 1) / tiles);
  at::parallel_for(0, packed.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
      const char* here = weights + panel * panel_bytes;
      Ahead ahead{here + panel_bytes, panel + 1 < end ? here + 2 * panel_bytes : here, each};
      for (int64_t row = 0; row < rows; row += ROWS)
        TILES[std::min<int64_t>(ROWS, rows - row)](product, row, here, panel * PANEL, ahead);
    }
  });
  return out;
}

TORCH_LIBRARY_FRAGMENT(nano_qwen3_cpu, library) {
  library.def("pack_weight(Tensor weight) -> Tensor", &pack_weight);
  library.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor", &packed_linear);
}

}  // namespace nano_qwen3

#endif
