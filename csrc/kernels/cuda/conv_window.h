// The arithmetic of a depthwise convolution: one thread computes a strip of outputs. Padding is
// zero after the prologue, and nothing outside the image is ever read.
//
// SlidingWindow (3 x 3, stride 1 or 2) fetches each input row of its strip once, some rows ahead of
// its use, and adds it to every output row that it is part of; the sums of those rows rotate.
// AnyWindow takes each output by itself and any kernel, stride and dilation.
#pragma once

#include "kernels/cuda/maps.h"
#include "kernels/cuda/partition.h"
#include "kernels/cuda/row_queue.h"

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
  using A = Accumulator<T>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kKernel = 3, kTaps = kKernel * kKernel;
  // The columns of a strip share inputs, which are converted and normalised once for all of them.
  // Two-byte types, whose arithmetic takes longer than their memory, have as many as registers are
  // enough for: at stride 1 four, which take 6 inputs, at stride 2 two, which take 5. In float32,
  // where memory takes longer, half as many.
  static constexpr bool kIsSmall = sizeof(T) == 2;
  static constexpr int kColumns = V::kPack > 1               ? V::kPack
                                  : kStride == 1 && kIsSmall ? 4
                                  : kStride == 1 || kIsSmall ? 2
                                                             : 1;
  // On a multiprocessor: what the registers are enough for, and the 164 KB or more of shared memory
  // that one of sm_80 and sm_90 has. Where it is 100 KB, float32 gets two.
  static constexpr int kMinBlocks = kStride == 2 && kIsSmall ? 4 : 3;
  static constexpr int kInputs = (kColumns - 1) * kStride + kKernel;
  static constexpr int kAhead = 3;  // rows on their way while one is used
  using Rows = RowQueue<V, -V::kPadLeft, kInputs, kAhead + 1>;

  __device__ SlidingWindow(const ConvParams<A>& params, const ScaleShiftAct& epilogue,
                           int64_t channel, Rows& rows)
      : params_(params),
        epilogue_(epilogue),
        channel_(static_cast<unsigned int>(channel)),
        rows_(rows),
        pixel_(in_register(V::pixel(params.input))) {}

  // Calls output.put(sums) for every row of the strip.
  template <typename Output>
  __device__ void run(const Strip& strip, Output& output) {
    output.begin(params_, strip);
    Cursor cursor(params_, strip, channel_);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) fetch_row(cursor, i);
    if (!is_loaded_) load_parameters();
    Sums sums[kLive];
#pragma unroll
    for (int tap = 0; tap < kFill; ++tap) take_row(cursor, tap, sums);
#pragma unroll 1
    for (int left = strip.rows; left > 0; left -= kLive) {
#pragma unroll
      for (int i = 0; i < kLive; ++i) {
        if (i > 0 && i >= left) return;
#pragma unroll
        for (int phase = 0; phase < kStride; ++phase) take_row(cursor, kFill + phase, sums);
        output.put(sums[0].at);
#pragma unroll
        for (int live = 1; live < kLive; ++live) sums[live - 1] = sums[live];
      }
    }
  }

 private:
  static constexpr int kLive = (kKernel - 1) / kStride + 1;  // output rows that share an input row
  static constexpr int kFill = kKernel - kStride;            // input rows before they are that many

  // A row of outputs that is not complete.
  struct Sums {
    A at[kColumns][kLanes];
  };

  // Input rows count from the first tap of the strip's first output.
  struct Cursor {
    const T* next;             // the first column of the next row to fetch
    unsigned int inside_rows;  // the image: a bit for each row, from the next to use on
    unsigned int inside_columns;
    unsigned int place;  // of the next row to use
    typename Prologue::Mask mask[kInputs];

    __device__ Cursor(const ConvParams<A>& params, const Strip& strip, int64_t channel) {
      static_assert((kMaxRows - 1) * kStride + kKernel < 32);
      const ConvShape& s = params.args.shape;
      const int64_t top = strip.row * kStride - s.pad_top;
      const int64_t left = strip.column * kStride - s.pad_left;
      inside_rows = bits_inside(top, (strip.rows - 1) * kStride + kKernel, s.in_height);
      inside_columns = bits_inside(left, kInputs, s.in_width);
      place = 0;
      for (int x = 0; x < kInputs; ++x) mask[x] = Prologue::mask(inside_columns >> x & 1);
      next = static_cast<const T*>(params.args.input) + channel * params.input.channel +
             params.input.at(strip.image, top, left);
    }
  };

  // Once the first rows are on their way. The epilogue is linear: its scale goes into the weights,
  // and sums begin at its shift.
  __device__ void load_parameters() {
    Affine<A, kLanes> epilogue;
    epilogue.load(epilogue_, channel_);
    start_ = epilogue.shift;
    prologue_.load(params_.args.prologue, params_.prologue, channel_);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      load_weight<T>(params_.args, channel_, t, weight_[t]);
      for (int v = 0; v < kLanes; ++v) weight_[t][v] *= epilogue.scale.at[v];
    }
    is_loaded_ = true;
  }

  // The row `ahead` of the next to use.
  __device__ void fetch_row(Cursor& cursor, int ahead) const {
    if (cursor.inside_rows >> ahead & 1) {
      rows_.fetch(Rows::place_after(cursor.place, ahead), cursor.next, pixel_,
                  [&](int x) { return cursor.inside_columns >> x & 1; });
    }
    end_copy_group();
    cursor.next += params_.input.row;
  }

  // Uses a row, and fetches the one that is kAhead after it.
  __device__ void take_row(Cursor& cursor, int tap, Sums (&sums)[kLive]) const {
    fetch_row(cursor, kAhead);
    wait_for_copies<kAhead>();
    if (cursor.inside_rows & 1) {
      if (tap % kStride == 0) sums[tap / kStride] = first_sums();
      accumulate(cursor, tap, sums);
    } else if (tap % kStride == 0) {
      // In registers of its own, lest that be done before the branch: for nothing in the other,
      // where the first products are added to it.
      sums[tap / kStride] = first_sums();
      for (auto& column : sums[tap / kStride].at) {
        for (A& sum : column) sum = in_register(sum);
      }
    }
    cursor.inside_rows >>= 1;
    cursor.place = Rows::place_after(cursor.place, 1);
  }

  // Adds an input row to the output rows it is part of: row `tap` of the first one's, and so on.
  __device__ void accumulate(const Cursor& cursor, int tap, Sums (&sums)[kLive]) const {
#pragma unroll
    for (int x = 0; x < kInputs; ++x) {
      A z[kLanes];
      rows_.decode(cursor.place, x, z);
      prologue_(z, cursor.mask[x]);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const int tap_x = x - column * kStride;
        if (tap_x < 0 || tap_x >= kKernel) continue;
#pragma unroll
        for (int i = 0; i < kLive; ++i) {
          const int tap_y = tap - i * kStride;
          if (tap_y < 0) continue;
          const A(&weight)[kLanes] = weight_[tap_y * kKernel + tap_x];
          for (int v = 0; v < kLanes; ++v) sums[i].at[column][v] += weight[v] * z[v];
        }
      }
    }
  }

  __device__ Sums first_sums() const {
    Sums sums;
    for (int x = 0; x < kColumns; ++x) {
      for (int v = 0; v < kLanes; ++v) sums.at[x][v] = start_.at[v];
    }
    return sums;
  }

  const ConvParams<A>& params_;
  const ScaleShiftAct epilogue_;
  unsigned int channel_;
  Rows& rows_;
  unsigned int pixel_;
  bool is_loaded_ = false;
  Prologue prologue_;
  Pack<A, kLanes> start_;
  A weight_[kTaps][kLanes];
};

template <typename V>
class AnyWindow {
 public:
  using Values = V;
  using T = typename V::T;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kColumns = 1;
  static constexpr int kMinBlocks = 3;
  struct Rows {};

  __device__ AnyWindow(const ConvParams<Accumulator<T>>& params, const ScaleShiftAct& epilogue,
                       int64_t channel, Rows&)
      : params_(params),
        args_(params.args),
        input_(static_cast<const T*>(args_.input) + channel * params.input.channel),
        channel_(channel) {
    prologue_.load(args_.prologue, params.prologue, channel);
    epilogue_.load(epilogue, channel);
  }

  template <typename Output>
  __device__ void run(const Strip& strip, Output& output) const {
    const ConvShape& s = args_.shape;
    output.begin(params_, strip);
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      A sums[kColumns][kLanes] = {};
      for (int64_t tap_y = 0; tap_y < s.kernel; ++tap_y) {
        const int64_t y = row * s.stride - s.pad_top + tap_y * s.dilation;
        if (y < 0 || y >= s.in_height) continue;
        const int64_t left = strip.column * s.stride - s.pad_left;
        add_tap_row(params_.input.at(strip.image, y, 0), left, tap_y, sums[0]);
      }
      for (int v = 0; v < kLanes; ++v) sums[0][v] = epilogue_(v, sums[0][v]);
      output.put(sums);
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
      prologue_(z, true);
      load_weight<T>(args_, channel_, tap_y * s.kernel + tap_x, weight);
      for (int v = 0; v < kLanes; ++v) sums[v] += weight[v] * z[v];
    }
  }

  const ConvParams<A>& params_;
  const DepthwiseConvArgs& args_;
  const T* input_;
  int64_t channel_;
  Bounded<A, kLanes> prologue_;
  Affine<A, kLanes> epilogue_;
};

}  // namespace mobilenet_ext::cuda
