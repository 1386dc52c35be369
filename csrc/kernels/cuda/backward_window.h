// The arithmetic of the backward depthwise convolution, 3 x 3 at stride 1 or 2: one thread computes
// a strip of input gradients and its share of the weight gradients. Output gradients `dy` are
// computed on load, from their own values and the raw output, one row ahead; the window holds those
// rows of them that reach a row of inputs, and each serves both results while it is there. Rows
// count in padded coordinates, from the corner of the padded image, and so do columns but for
// vectors of pixels. A cell is kStride rows of inputs, from a multiple of kStride on: one new row
// of dy for each.
#pragma once

#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/channel_totals.h"

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
  static constexpr int kMinBlocks =
      sizeof(T) == 4 && kLanes > 1 && kStrideT == 1 && kHasRaw ? 2 : 3;
  static constexpr int kKernel = 3;
  static constexpr int kTaps = kKernel * kKernel;
  static constexpr int kSums = kTaps + 2;  // weight gradients, grad_sum and grad_dot
  using Parameters = ChannelParameters<A, kLanes, kTaps>;
  using Slots = TotalSlots<A, kLanes, kSums>;

  // `parameters`: of the channels from `channel` on, in shared memory.
  __device__ BackwardWindow(const BackwardParams<A>& params, int64_t channel,
                            const Parameters& parameters)
      : params_(params),
        args_(params.args),
        channel_(channel),
        parameters_(parameters),
        grad_offsets_(V::pixel(params.grad)),
        input_offsets_(V::pixel(params.input)) {}

  __device__ void run(const Strip& strip, Slots& slots) const {
    Cursor cursor(params_, strip, channel_);
    A window[kReach][kGradients][kLanes];
    A sums[kTaps][kLanes] = {};
    Cell cell = {};
    load_cell(cursor, cell);
#pragma unroll
    for (int i = 0; i < kReach; ++i) {
      take_gradients(cell, window[i]);
      cursor.advance(params_);
      load_cell(cursor, cell);
    }
#pragma unroll 1
    for (int rows = strip.rows; rows > 0; --rows) put_cell(cursor, cell, window, sums, slots);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) slots.add(t, sums[t]);
  }

 private:
  static constexpr int kStride = kStrideT;
  static constexpr int kReach = (kKernel - 1) / kStride;  // dy before the one at a cell
  // The dy that the columns of a strip reach, counted from the one of the strip's first column by
  // its tap kPadLeft: tap t of column x is at (x + kPadLeft - t) / kStride.
  static constexpr int kFirst = (V::kPadLeft + 1 - kKernel) / kStride;
  static constexpr int kGradients = (kColumns - 1 + V::kPadLeft) / kStride - kFirst + 1;
  using Gradients = Columns<V, kFirst, kGradients>;

  // A cell of inputs, and the last row of dy that reaches it.
  struct Cell {
    Gradients grad, raw;
    Columns<V, 0, kColumns> input[kStride];
    unsigned int inside;  // the image: a bit for each of dy, then one for each of the inputs

    __device__ bool has_grad(int g) const { return inside >> g & 1; }
    __device__ bool has_input(int row, int x) const {
      return inside >> (kGradients + row * kColumns + x) & 1;
    }
  };

  // The next cell to load; the window starts with those above the strip, of which only the rows of
  // dy matter. A bit for each row (from this cell on) and column that is wanted and inside the
  // image.
  struct Cursor {
    unsigned int grad_rows, input_rows, grad_columns, input_columns;
    // At the first column; `raw` and `grad_input` may not be there.
    const T *grad, *raw, *input;
    T* grad_input;

    __device__ Cursor(const BackwardParams<A>& params, const Strip& strip, int64_t channel) {
      static_assert(kMaxRows * kStride + kReach * kStride < 32 &&
                    kGradients + kStride * kColumns < 32);
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
      grad_input = static_cast<T*>(args.grad_input) + of_input;
    }

    __device__ unsigned int inside() const {
      unsigned int bits = grad_rows & 1 ? grad_columns : 0;
      for (int row = 0; row < kStride; ++row) {
        if (input_rows >> row & 1) bits |= input_columns << (kGradients + row * kColumns);
      }
      return bits;
    }
    __device__ void advance(const BackwardParams<A>& params) {
      grad_rows >>= 1;
      input_rows >>= kStride;
      grad += params.grad.row;
      raw += params.grad.row;
      input += kStride * params.input.row;
      grad_input += kStride * params.input.row;
    }
  };

  // What is outside the image stays as it is.
  __device__ void load_cell(const Cursor& at, Cell& to) const {
    to.inside = at.inside();
    const auto has_grad = [&](int g) { return to.has_grad(g); };
    to.grad.load(at.grad, grad_offsets_, has_grad);
    if constexpr (kHasRaw) to.raw.load(at.raw, grad_offsets_, has_grad);
    for (int row = 0; row < kStride; ++row) {
      to.input[row].load(at.input + row * params_.input.row, input_offsets_,
                         [&](int x) { return to.has_input(row, x); });
    }
  }

  // A row of dy, 0 outside the image.
  __device__ void take_gradients(const Cell& cell, A (&dy)[kGradients][kLanes]) const {
    RawGradient<A, kLanes> gradient;
    if constexpr (kHasRaw) gradient = load_shared(parameters_.gradient);
#pragma unroll
    for (int g = 0; g < kGradients; ++g) {
      cell.grad.decode(g, dy[g]);
      if constexpr (kHasRaw) {
        A raw[kLanes];
        cell.raw.decode(g, raw);
        gradient(dy[g], raw, params_.epilogue, args_.gradient_map.raw_scale != nullptr);
      }
      for (A& of_lane : dy[g]) of_lane = cell.has_grad(g) ? of_lane : A{0};
    }
  }

  // A row of inputs behind the prologue, 0 outside the image, and their gradients.
  struct Inputs {
    A z[kColumns][kLanes], grad[kColumns][kLanes];
  };

  // A cell's input gradients, and what it adds to the sums. The next cell is loaded as soon as the
  // oldest row of dy, which only the first row of inputs meets, is done with.
  __device__ void put_cell(Cursor& cursor, Cell& cell, A (&window)[kReach][kGradients][kLanes],
                           A (&sums)[kTaps][kLanes], Slots& slots) const {
    A newest[kGradients][kLanes];
    take_gradients(cell, newest);
    Inputs inputs = take_inputs(cell, 0);
    add_taps<kReach>(window[0], 0, inputs, sums);
    const Cell done = cell;
    T* to = cursor.grad_input;
    cursor.advance(params_);
    load_cell(cursor, cell);
    if constexpr (kReach > 1) add_taps<1>(window[1], 0, inputs, sums);
#pragma unroll
    for (int row = 0; row < kStride; ++row) {
      if (row > 0) inputs = take_inputs(done, row);
      add_taps<0>(newest, row, inputs, sums);
      put_row(done, row, to + row * params_.input.row, inputs, slots);
    }
    for (int g = 0; g < kGradients; ++g) {
      for (int v = 0; v < kLanes; ++v) {
        if constexpr (kReach > 1) window[0][g][v] = window[1][g][v];
        window[kReach - 1][g][v] = newest[g][v];
      }
    }
  }

  __device__ Inputs take_inputs(const Cell& cell, int row) const {
    const Affine<A, kLanes> prologue = load_shared(parameters_.prologue);
    Inputs inputs = {};
#pragma unroll
    for (int x = 0; x < kColumns; ++x) {
      A(&z)[kLanes] = inputs.z[x];
      cell.input[row].decode(x, z);
      for (int v = 0; v < kLanes; ++v) {
        const A activated = params_.prologue.activate(prologue(v, z[v]));
        z[v] = cell.has_input(row, x) ? activated : A{0};
      }
    }
    return inputs;
  }

  // What the row `dy`, kAbove cells above the inputs', has to do with row `row` of them.
  template <int kAbove>
  __device__ void add_taps(const A (&dy)[kGradients][kLanes], int row, Inputs& inputs,
                           A (&sums)[kTaps][kLanes]) const {
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
  // stored ones: in the slots, as registers are short.
  __device__ void put_row(const Cell& cell, int row, T* to, Inputs& inputs, Slots& slots) const {
    A sum[kLanes] = {}, dot[kLanes] = {};
    const Pack<A, kLanes> mean = load_shared(parameters_.mean);
#pragma unroll
    for (int x = 0; x < kColumns; x += V::kPack) {
      if (!cell.has_input(row, x)) continue;
      A grad[kWide<V>];
      for (int i = 0; i < kWide<V>; ++i) {
        const int column = x + i / kLanes, v = i % kLanes;
        grad[i] = params_.prologue.gradient(inputs.grad[column][v], inputs.z[column][v]);
      }
      const Vector<V> pack = encode_pack<T>(grad);
      decode_pack(pack, grad);
      if (args_.grad_input) store(to + input_offsets_.at[x], pack);
      for (int i = 0; i < kWide<V>; ++i) {
        const int v = i % kLanes;
        A input[kLanes];
        cell.input[row].decode(x + i / kLanes, input);
        sum[v] += grad[i];
        dot[v] += grad[i] * (input[v] - mean.at[v]);
      }
    }
    if (!args_.input_mean) return;
    slots.add(kTaps, sum);
    slots.add(kTaps + 1, dot);
  }

  const BackwardParams<A>& params_;
  const DepthwiseConvBackwardArgs& args_;
  int64_t channel_;
  const Parameters& parameters_;
  ColumnOffsets<kGradients> grad_offsets_;
  ColumnOffsets<kColumns> input_offsets_;
};

}  // namespace mobilenet_ext::cuda
