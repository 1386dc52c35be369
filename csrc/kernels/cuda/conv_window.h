// The arithmetic of a depthwise convolution: one thread computes a strip of outputs. Padding is
// zero after the prologue, and nothing outside the image is ever read.
//
// SlidingWindow (3 x 3, stride 1 or 2) loads each input row of its strip once, some rows ahead of
// its use, and adds it to every output row that it is part of; the sums of those rows rotate.
// AnyWindow takes each output by itself and any kernel, stride and dilation.
#pragma once

#include "kernels/cuda/maps.h"
#include "kernels/cuda/partition.h"

namespace mobilenet_ext::cuda {

template <typename A>
struct ConvParams {
  DepthwiseConvArgs args;
  ConvPartition partition;
  ActivationBounds<A> prologue, epilogue;
  MapStrides input, output;

  ConvParams(const DepthwiseConvArgs& args, const ConvPartition& partition)
      : args(args),
        partition(partition),
        prologue(args.prologue),
        epilogue(args.epilogue),
        input(input_strides(args.layout, args.shape)),
        output(output_strides(args.layout, args.shape)) {}
};

// V: the vectors that inputs are loaded and outputs stored by.
template <typename V, int kStride, typename Prologue>
class SlidingWindow {
 public:
  using Values = V;
  using T = typename V::T;
  static constexpr int kLanes = V::kLanes;
  // Two columns share what they load, 4 inputs instead of 6; at stride 2 it would be 5, which does
  // not pay for the registers.
  static constexpr int kColumns = V::kPack > 1 ? V::kPack : kStride == 1 ? 2 : 1;

  __device__ SlidingWindow(const ConvParams<Accumulator<T>>& params, int64_t channel)
      : params_(params),
        shape_(params.args.shape),
        input_(static_cast<const T*>(params.args.input) + channel * params.input.channel),
        prologue_(params.args.prologue, params.prologue, channel) {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) load_weight<T>(params.args, channel, t, weight_[t]);
  }

  // Calls output.put(sums, offset, columns) for every row of the strip.
  template <typename Output>
  __device__ void run(const Strip& strip, Output& output) const {
    int64_t to = params_.output.at(strip.image, strip.row, strip.column);
    const int64_t columns = shape_.out_width - strip.column;
    Cursor cursor(params_, strip);
    A sums[kLive][kColumns][kLanes] = {};
    InputRow next[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) next[i] = load_row(cursor);
#pragma unroll kLive
    for (int i = 1 - kLive; i < strip.rows; ++i) {
#pragma unroll
      for (int phase = 0; phase < kStride; ++phase) {
        const InputRow row = next[0];
#pragma unroll
        for (int ahead = 1; ahead < kAhead; ++ahead) next[ahead - 1] = next[ahead];
        next[kAhead - 1] = load_row(cursor);
        accumulate(row, cursor, phase, sums);
      }
      if (i >= 0) {
        output.put(sums[0], to, columns);
        to += params_.output.row;
      }
      rotate(sums);
    }
  }

 private:
  using A = Accumulator<T>;
  static constexpr int kKernel = 3, kTaps = kKernel * kKernel;
  static constexpr int kLive = (kKernel - 1) / kStride + 1;  // output rows that share an input row
  static constexpr int kInputs = (kColumns - 1) * kStride + kKernel;

  // Rows to load ahead. On each multiprocessor, 3 TB/s want 8 KB of loads under way at stride 1,
  // where the other half of the traffic is stores, and 13 KB at stride 2. These make 12 and 18 KB
  // for three thread blocks, neighbours' columns not counted. Of single values it would take more
  // rows than there are registers for.
  static constexpr int kAheadBytes = 16 * (1 + kStride);
  static constexpr int kRowBytes = (V::kPack > 1 ? kStride : 2) * sizeof(Vector<V>);
  static constexpr int kRowsAhead = (kAheadBytes + kRowBytes - 1) / kRowBytes;
  static constexpr int kAhead = kRowsAhead < 3 ? kRowsAhead : 3;

  struct InputRow {
    Columns<V, -V::kPadLeft, kInputs> columns;
    bool inside;  // the image, as far as rows go
  };

  // The next input row to load. Rows count from the first tap of the strip's first output; the
  // window starts with the rows that fill its sums, of which the strip may not need the first.
  struct Cursor {
    int row, first, end;  // rows [first, end) are inside the image
    int64_t offset;       // elements from the input to the row's first column
    bool inside[kInputs];

    __device__ Cursor(const ConvParams<A>& params, const Strip& strip) {
      const ConvShape& s = params.args.shape;
      const int64_t top = strip.row * kStride - s.pad_top;
      const int64_t left = strip.column * kStride - s.pad_left;
      const int taps = (strip.rows - 1) * kStride + kKernel;
      row = kKernel - kStride * kLive;
      first = static_cast<int>(top < 0 ? (top < -taps ? taps : -top) : 0);
      end = static_cast<int>(s.in_height - top < taps ? s.in_height - top : taps);
      offset = params.input.at(strip.image, top + row, left);
      for (int x = 0; x < kInputs; ++x) inside[x] = left + x >= 0 && left + x < s.in_width;
    }
  };

  __device__ InputRow load_row(Cursor& cursor) const {
    InputRow row;
    row.inside = cursor.row >= cursor.first && cursor.row < cursor.end;
    row.columns.load(input_ + cursor.offset, V::pixel(params_.input),
                     [&](int x) { return row.inside && cursor.inside[x]; });
    ++cursor.row;
    cursor.offset += params_.input.row;
    return row;
  }

  // Adds an input row to the output rows it is part of: its tap row counts down from row to row.
  __device__ void accumulate(const InputRow& row, const Cursor& cursor, int phase,
                             A (&sums)[kLive][kColumns][kLanes]) const {
#pragma unroll
    for (int x = 0; x < kInputs; ++x) {
      A z[kLanes];
      row.columns.decode(x, z);
      if constexpr (!Prologue::kKeepsZero) {
        prologue_(z);
        const bool inside = row.inside && cursor.inside[x];
        for (int v = 0; v < kLanes; ++v) z[v] = inside ? z[v] : A{0};
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const int tap_x = x - column * kStride;
        if (tap_x < 0 || tap_x >= kKernel) continue;
#pragma unroll
        for (int i = 0; i < kLive; ++i) {
          const int tap_y = kKernel - kStride + phase - i * kStride;
          if (tap_y < 0) continue;
          const A(&weight)[kLanes] = weight_[tap_y * kKernel + tap_x];
          for (int v = 0; v < kLanes; ++v) sums[i][column][v] += weight[v] * z[v];
        }
      }
    }
  }

  static __device__ void rotate(A (&sums)[kLive][kColumns][kLanes]) {
#pragma unroll
    for (int i = 0; i < kLive; ++i) {
      for (int x = 0; x < kColumns; ++x) {
        for (int v = 0; v < kLanes; ++v) sums[i][x][v] = i + 1 < kLive ? sums[i + 1][x][v] : A{0};
      }
    }
  }

  const ConvParams<A>& params_;
  const ConvShape& shape_;
  const T* input_;
  Prologue prologue_;
  A weight_[kTaps][kLanes];
};

template <typename V>
class AnyWindow {
 public:
  using Values = V;
  using T = typename V::T;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kColumns = 1;

  __device__ AnyWindow(const ConvParams<Accumulator<T>>& params, int64_t channel)
      : params_(params),
        args_(params.args),
        input_(static_cast<const T*>(args_.input) + channel * params.input.channel),
        channel_(channel),
        prologue_(args_.prologue, params.prologue, channel) {}

  template <typename Output>
  __device__ void run(const Strip& strip, Output& output) const {
    const ConvShape& s = args_.shape;
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      A sums[kColumns][kLanes] = {};
      for (int64_t tap_y = 0; tap_y < s.kernel; ++tap_y) {
        const int64_t y = row * s.stride - s.pad_top + tap_y * s.dilation;
        if (y < 0 || y >= s.in_height) continue;
        const int64_t left = strip.column * s.stride - s.pad_left;
        add_tap_row(params_.input.at(strip.image, y, 0), left, tap_y, sums[0]);
      }
      output.put(sums, params_.output.at(strip.image, row, strip.column), kColumns);
    }
  }

 private:
  using A = Accumulator<T>;

  // `row`: elements to an input row; `left`: the column of the first tap.
  __device__ void add_tap_row(int64_t row, int64_t left, int64_t tap_y, A (&sums)[kLanes]) const {
    const ConvShape& s = args_.shape;
    for (int64_t tap_x = 0; tap_x < s.kernel; ++tap_x) {
      const int64_t x = left + tap_x * s.dilation;
      if (x < 0 || x >= s.in_width) continue;
      A z[kLanes], weight[kLanes];
      decode_pack(load<Vector<V>>(input_ + row + x * params_.input.pixel), z);
      prologue_(z);
      load_weight<T>(args_, channel_, tap_y * s.kernel + tap_x, weight);
      for (int v = 0; v < kLanes; ++v) sums[v] += weight[v] * z[v];
    }
  }

  const ConvParams<A>& params_;
  const DepthwiseConvArgs& args_;
  const T* input_;
  int64_t channel_;
  Bounded<A, kLanes> prologue_;
};

}  // namespace mobilenet_ext::cuda
