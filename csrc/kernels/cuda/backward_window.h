// The arithmetic of the backward depthwise convolution, 3 x 3 at stride 1 or 2: one thread computes
// a strip of input gradients and its share of the weight gradients. Output gradients `dy` are
// computed from their own values and the raw output; the window holds those rows of them that reach
// a row of inputs, and each serves both results while it is there. What comes next is fetched one
// cell ahead. Rows count in padded coordinates, from the corner of the padded image, and so do
// columns but for vectors of pixels. A cell is kStride rows of inputs, from a multiple of kStride
// on: one new row of dy for each.
#pragma once

#include <type_traits>

#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/channel_totals.h"
#include "kernels/cuda/row_queue.h"

namespace mobilenet_ext::cuda {

// The column of the image that strips are counted from: none of its pixels' dy lie between columns.
// Where vectors of pixels are moved it is their first.
template <typename V>
MOBILENET_EXT_HOST_DEVICE int64_t first_column(const ConvShape& s) {
  return V::kPack > 1 ? 0 : -(s.pad_left % s.stride);
}

// Cells and columns of an image, from the first that holds a pixel.
template <typename V>
StripMap cell_map(const ConvShape& s) {
  return {s.batch, s.channels, ceil_div(s.in_height + s.pad_top % s.stride, s.stride),
          s.in_width - first_column<V>(s)};
}

// What a thread needs to know of its channels: in shared memory, to spare registers. An odd number
// of 16 bytes, which keeps neighbours in different banks.
template <typename A, int kLanes, int kTaps>
struct ChannelParameters {
  Pack<A, kLanes> weight[kTaps];
  RawGradient<A, kLanes> gradient;
  Affine<A, kLanes> prologue;
  Pack<A, kLanes> mean;

  template <typename T>
  __device__ void load(const DepthwiseConvBackwardArgs& args, int64_t channel) {
    for (int t = 0; t < kTaps; ++t) load_weight<T>(args, channel, t, weight[t].at);
    gradient.load(args.epilogue, args.gradient_map, channel);
    prologue.load(args.prologue, channel);
    load_vector_or(A{0}, args.input_mean, channel, mean.at);
  }
};

// V: the vectors that maps are moved by; kHasRaw: there is a raw output, and something followed it.
template <typename V, int kStrideT, bool kHasRaw>
class BackwardWindow {
 public:
  using T = typename V::T;
  using A = Accumulator<T>;
  static constexpr int kLanes = V::kLanes;
  // Of a strip; they share what they compute of dy, of which they take whole vectors.
  static constexpr int kColumns = V::kPack > 1 ? V::kPack * kStrideT : 2;
  // On a multiprocessor: what the registers are enough for.
  static constexpr int kMinBlocks = sizeof(T) == 4 && kLanes > 1 ? 2 : kStrideT == 2 ? 4 : 3;
  static constexpr int kKernel = 3, kTaps = kKernel * kKernel;
  static constexpr int kSums = kTaps + 2;  // weight gradients, grad_sum and grad_dot
  using Parameters = ChannelParameters<A, kLanes, kTaps>;
  using Slots = TotalSlots<A, kLanes, kSums>;
  using Sums = A[kSums][kLanes];  // of all strips of a thread: some hundred pixels
  // The dy that the columns of a strip reach, counted from the one of the strip's first column by
  // its tap kPadLeft: tap t of column x is at (x + kPadLeft - t) / kStride.
  static constexpr int kFirst = (V::kPadLeft + 1 - kKernel) / kStrideT;
  static constexpr int kGradients = (kColumns - 1 + V::kPadLeft) / kStrideT - kFirst + 1;
  static constexpr int kAhead = 1;  // cells on their way while one is used

  // Cells of inputs, each with the last row of dy that reaches it.
  struct NoRows {};
  struct Cells {
    using Gradients = RowQueue<V, kFirst, kGradients, kAhead + 1>;
    Gradients grad;
    std::conditional_t<kHasRaw, Gradients, NoRows> raw;
    RowQueue<V, 0, kColumns, kAhead + 1> input[kStrideT];
  };

  // `parameters`: of the channels from `channel` on, in shared memory.
  __device__ BackwardWindow(const BackwardParams<A>& params, int64_t channel,
                            const Parameters& parameters, Cells& cells)
      : params_(params),
        args_(params.args),
        channel_(channel),
        parameters_(parameters),
        cells_(cells),
        pixel_(in_register(V::pixel(params.input))) {}

  __device__ void run(const Strip& strip, Sums& sums) const {
    Cursor cursor(params_, strip, channel_);
    A window[kReach][kGradients][kLanes];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) fetch_cell(cursor, i);
#pragma unroll
    for (int i = 0; i < kReach; ++i) {
      fetch_cell(cursor, kAhead);
      wait_for_copies<kAhead>();
      take_gradients(cursor, window[i]);
      cursor.next_cell();
    }
#pragma unroll 1
    for (int left = strip.rows; left > 0; left -= kUnrolled) {
#pragma unroll
      for (int i = 0; i < kUnrolled; ++i) {
        if (i > 0 && i >= left) return;
        put_cell(cursor, window, sums);
      }
    }
  }

 private:
  static constexpr int kStride = kStrideT;
  static constexpr int kReach = (kKernel - 1) / kStride;  // dy before the one at a cell
  // Cells to a trip of the loop: as many as the window holds, which need not be moved then; at
  // stride 1 it was measured to gain nothing.
  static constexpr int kUnrolled = kStride == 2 ? 2 : 1;

  // The window starts with the cells above the strip, of which only the rows of dy matter. A bit
  // for each row (from the cell to use on) and column that is wanted and inside the image.
  struct Cursor {
    unsigned int grad_rows, input_rows, grad_columns, input_columns;
    unsigned int place;           // of the cell to use
    const T *grad, *raw, *input;  // the first column of the next cell to fetch; raw: if any
    T* grad_input;                // the same of the next to store; if any

    __device__ Cursor(const BackwardParams<A>& params, const Strip& strip, int64_t channel) {
      static_assert(kMaxRows * kStride + kReach * kStride < 32);
      place = 0;
      const ConvShape& s = params.args.shape;
      const int64_t top = strip.row * kStride - s.pad_top % kStride;
      const int64_t left = strip.column + first_column<V>(s);
      const int64_t grad_row = strip.row + s.pad_top / kStride - kReach;
      const int64_t grad_column = (left + s.pad_left - V::kPadLeft) / kStride + kFirst;
      grad_rows = bits_inside(grad_row, kReach + strip.rows, s.out_height);
      input_rows = bits_inside(top, strip.rows * kStride, s.in_height) << (kReach * kStride);
      grad_columns = bits_inside(grad_column, kGradients, s.out_width);
      input_columns = bits_inside(left, kColumns, s.in_width);
      const DepthwiseConvBackwardArgs& args = params.args;
      const int64_t of_grad =
          params.grad.at(strip.image, grad_row, grad_column) + channel * params.grad.channel;
      const int64_t of_input = params.input.at(strip.image, top - kReach * kStride, left) +
                               channel * params.input.channel;
      grad = static_cast<const T*>(args.grad_output) + of_grad;
      raw = static_cast<const T*>(args.output) + of_grad;
      input = static_cast<const T*>(args.input) + of_input;
      grad_input =
          static_cast<T*>(args.grad_input) + of_input + kReach * kStride * params.input.row;
    }

    __device__ bool has_grad(int g) const { return (grad_rows & 1) && (grad_columns >> g & 1); }
    __device__ bool has_input(int row, int x) const {
      return (input_rows >> row & 1) && (input_columns >> x & 1);
    }
    __device__ void next_cell() {
      grad_rows >>= 1;
      input_rows >>= kStride;
      place = Cells::Gradients::place_after(place, 1);
    }
  };

  // The cell `ahead` of the one to use.
  __device__ void fetch_cell(Cursor& cursor, int ahead) const {
    const unsigned int place = Cells::Gradients::place_after(cursor.place, ahead);
    if (cursor.grad_rows >> ahead & 1) {
      const auto has = [&](int g) { return cursor.grad_columns >> g & 1; };
      cells_.grad.fetch(place, cursor.grad, pixel_, has);
      if constexpr (kHasRaw) cells_.raw.fetch(place, cursor.raw, pixel_, has);
    }
    for (int row = 0; row < kStride; ++row) {
      if (cursor.input_rows >> (ahead * kStride + row) & 1) {
        cells_.input[row].fetch(place, cursor.input, pixel_,
                                [&](int x) { return cursor.input_columns >> x & 1; });
      }
      cursor.input += params_.input.row;
    }
    cursor.grad += params_.grad.row;
    cursor.raw += params_.grad.row;
    end_copy_group();
  }

  // A row of dy, 0 outside the image.
  __device__ void take_gradients(const Cursor& cursor, A (&dy)[kGradients][kLanes]) const {
    RawGradient<A, kLanes> gradient;
    if constexpr (kHasRaw) gradient = load_shared(parameters_.gradient);
#pragma unroll
    for (int g = 0; g < kGradients; ++g) {
      cells_.grad.decode(cursor.place, g, dy[g]);
      if constexpr (kHasRaw) {
        A raw[kLanes];
        cells_.raw.decode(cursor.place, g, raw);
        gradient(dy[g], raw, params_.epilogue, args_.gradient_map.raw_scale != nullptr);
      }
      for (A& of_lane : dy[g]) of_lane = cursor.has_grad(g) ? of_lane : A{0};
    }
  }

  // A row of inputs behind the prologue, 0 outside the image, and their gradients.
  struct Inputs {
    A z[kColumns][kLanes], grad[kColumns][kLanes];
  };

  // A cell's input gradients, and what it adds to the sums.
  __device__ void put_cell(Cursor& cursor, A (&window)[kReach][kGradients][kLanes],
                           Sums& sums) const {
    fetch_cell(cursor, kAhead);
    wait_for_copies<kAhead>();
    A newest[kGradients][kLanes];
    take_gradients(cursor, newest);
#pragma unroll
    for (int row = 0; row < kStride; ++row) {
      Inputs inputs = take_inputs(cursor, row);
      if (row == 0) {
        add_taps<kReach>(window[0], 0, inputs, sums);
        if constexpr (kReach > 1) add_taps<1>(window[1], 0, inputs, sums);
      }
      add_taps<0>(newest, row, inputs, sums);
      put_row(cursor, row, inputs, sums);
      cursor.grad_input += params_.input.row;
    }
    cursor.next_cell();
    for (int g = 0; g < kGradients; ++g) {
      for (int v = 0; v < kLanes; ++v) {
        if constexpr (kReach > 1) window[0][g][v] = window[1][g][v];
        window[kReach - 1][g][v] = newest[g][v];
      }
    }
  }

  __device__ Inputs take_inputs(const Cursor& cursor, int row) const {
    const Affine<A, kLanes> prologue = load_shared(parameters_.prologue);
    Inputs inputs = {};
#pragma unroll
    for (int x = 0; x < kColumns; ++x) {
      A(&z)[kLanes] = inputs.z[x];
      cells_.input[row].decode(cursor.place, x, z);
      for (int v = 0; v < kLanes; ++v) {
        const A activated = params_.prologue.activate(prologue(v, z[v]));
        z[v] = cursor.has_input(row, x) ? activated : A{0};
      }
    }
    return inputs;
  }

  // What the row `dy`, kAbove cells above the inputs', has to do with row `row` of them.
  template <int kAbove>
  __device__ void add_taps(const A (&dy)[kGradients][kLanes], int row, Inputs& inputs,
                           Sums& sums) const {
#pragma unroll
    for (int tap_x = 0; tap_x < kKernel; ++tap_x) {
      const int tap = (row + kAbove * kStride) * kKernel + tap_x;
      const Pack<A, kLanes> weight = load_shared(parameters_.weight[tap]);
#pragma unroll
      for (int x = 0; x < kColumns; ++x) {
        const int reached = x + V::kPadLeft - tap_x;
        if (reached % kStride != 0) continue;
        const A(&from)[kLanes] = dy[reached / kStride - kFirst];
        for (int v = 0; v < kLanes; ++v) {
          inputs.grad[x][v] += weight.at[v] * from[v];
          sums[tap][v] += inputs.z[x][v] * from[v];
        }
      }
    }
  }

  // Stores the gradients of a row of inputs behind the prologue's activation, and adds up the
  // stored ones.
  __device__ void put_row(const Cursor& cursor, int row, Inputs& inputs, Sums& sums) const {
    const Pack<A, kLanes> mean = load_shared(parameters_.mean);
#pragma unroll
    for (int x = 0; x < kColumns; x += V::kPack) {
      if (!cursor.has_input(row, x)) continue;
      A grad[kWide<V>];
      for (int i = 0; i < kWide<V>; ++i) {
        const int column = x + i / kLanes, v = i % kLanes;
        grad[i] = params_.prologue.gradient(inputs.grad[column][v], inputs.z[column][v]);
      }
      const Vector<V> pack = encode_pack<T>(grad);
      decode_pack(pack, grad);
      if (args_.grad_input) store(cursor.grad_input + x * pixel_, pack);
      for (int i = 0; i < kWide<V>; ++i) {
        const int v = i % kLanes;
        A input[kLanes];
        cells_.input[row].decode(cursor.place, x + i / kLanes, input);
        sums[kTaps][v] += grad[i];
        sums[kTaps + 1][v] += grad[i] * (input[v] - mean.at[v]);
      }
    }
  }

  const BackwardParams<A>& params_;
  const DepthwiseConvBackwardArgs& args_;
  int64_t channel_;
  const Parameters& parameters_;
  Cells& cells_;
  unsigned int pixel_;  // of all maps
};

}  // namespace mobilenet_ext::cuda
