// The elementwise part of one time step, after the products, for vectors of hidden units, or on a GPU for one unit:
// formulas of torch.nn.LSTM, GRU and RNN.
//
// Products are added to kGates sums per unit. Products of the input are added to kWeightGates sums from kInputFirst on,
// whose weights are torch's gates kInputGates; products of the hidden state to those from kHiddenFirst on,
// kHiddenGates. A cell's `state` is what it carries besides or instead of its output: c of an LSTM, h of a GRU. kSaved
// quantities are kept for backward, which computes the gradients of the kGates sums from them.
#pragma once

#include "core/base/scalar_math.h"
#ifndef __CUDACC__  // vectors are for the CPU
#include "core/base/vector_math.h"
#endif

namespace fastseq::recurrence {

struct Lstm {
  using Sums = Lstm;
  static constexpr int kGates = 4;  // i, f, g, o
  static constexpr int kInputFirst = 0;
  static constexpr int kHiddenFirst = 0;
  static constexpr int kWeightGates = 4;
  static constexpr int kInputGates[] = {0, 1, 2, 3};
  static constexpr int kHiddenGates[] = {0, 1, 2, 3};
  static constexpr int kSaved = 5;  // i, f, g, o, c
  static constexpr bool kHasCell = true;
  static constexpr bool kCarries = false;

  template <class V>
  FASTSEQ_DEVICE static void forward(const V* sums, V& state, V* saved, V& h) {
    for (int gate = 0; gate < 4; ++gate) saved[gate] = sums[gate];
    simd::sigmoid(saved[0]);
    simd::sigmoid(saved[1]);
    simd::tanh(saved[2]);
    simd::sigmoid(saved[3]);
    state = saved[1] * state + saved[0] * saved[2];
    saved[4] = state;
    h = state;
    simd::tanh(h);
    h = saved[3] * h;
  }

  // before: c of the step before. dstate: gradient of c, in and out.
  template <class V>
  FASTSEQ_DEVICE static void backward(const V* saved, const V& before, const V& /*h*/, V& dh, V& dstate, V* d) {
    const V& i = saved[0];
    const V& f = saved[1];
    const V& g = saved[2];
    const V& o = saved[3];
    V t = saved[4];
    simd::tanh(t);
    const V dc = dstate + dh * o * (1 - t * t);
    d[0] = dc * g * i * (1 - i);
    d[1] = dc * before * f * (1 - f);
    d[2] = dc * i * (1 - g * g);
    d[3] = dh * t * o * (1 - o);
    dstate = dc * f;
  }
};

// The sums are n's input part, r, z and n's hidden part, so that input and hidden products each use three adjacent
// ones.
struct Gru {
  using Sums = Gru;
  static constexpr int kGates = 4;
  static constexpr int kInputFirst = 0;
  static constexpr int kHiddenFirst = 1;
  static constexpr int kWeightGates = 3;
  static constexpr int kInputGates[] = {2, 0, 1};
  static constexpr int kHiddenGates[] = {0, 1, 2};
  static constexpr int kSaved = 4;  // n, r, z, n's hidden part
  static constexpr bool kHasCell = false;
  static constexpr bool kCarries = true;

  template <class V>
  FASTSEQ_DEVICE static void forward(const V* sums, V& state, V* saved, V& h) {
    saved[1] = sums[1];
    simd::sigmoid(saved[1]);
    saved[2] = sums[2];
    simd::sigmoid(saved[2]);
    saved[3] = sums[3];
    saved[0] = sums[0] + saved[1] * saved[3];
    simd::tanh(saved[0]);
    h = saved[0] + saved[2] * (state - saved[0]);
    state = h;
  }

  // before: h of the step before. dh becomes the part of its gradient that bypasses the products.
  template <class V>
  FASTSEQ_DEVICE static void backward(const V* saved, const V& before, const V& /*h*/, V& dh, V& /*dstate*/, V* d) {
    const V& n = saved[0];
    const V& r = saved[1];
    const V& z = saved[2];
    d[0] = dh * (1 - z) * (1 - n * n);
    d[1] = d[0] * saved[3] * r * (1 - r);
    d[2] = dh * (before - n) * z * (1 - z);
    d[3] = d[0] * r;
    dh = dh * z;
  }
};

struct RnnSums {
  static constexpr int kGates = 1;
  static constexpr int kInputFirst = 0;
  static constexpr int kHiddenFirst = 0;
  static constexpr int kWeightGates = 1;
  static constexpr int kInputGates[] = {0};
  static constexpr int kHiddenGates[] = {0};
};

template <bool kRelu>
struct Rnn : RnnSums {
  using Sums = RnnSums;
  static constexpr int kSaved = 0;  // the output is enough
  static constexpr bool kHasCell = false;
  static constexpr bool kCarries = false;

  template <class V>
  FASTSEQ_DEVICE static void forward(const V* sums, V& /*state*/, V* /*saved*/, V& h) {
    h = sums[0];
    if constexpr (kRelu) {
      h = h < 0 ? V{} : h;  // NaN stays
    } else {
      simd::tanh(h);
    }
  }

  template <class V>
  FASTSEQ_DEVICE static void backward(const V* /*saved*/, const V& /*before*/, const V& h, V& dh, V& /*dstate*/, V* d) {
    if constexpr (kRelu) {
      d[0] = h <= 0 ? V{} : dh;  // passes for NaN, as in torch
    } else {
      d[0] = dh * (1 - h * h);
    }
  }
};

}  // namespace fastseq::recurrence
