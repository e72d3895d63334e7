// The packer's kernels beside the packer on the CPU: the same bits.
#include "cuda/pack_kernels.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"
#include "core/base/pack.h"
#include "device_buffer.h"

namespace fastseq {

namespace {

using cuda::Stream;
using testing::DeviceBuffer;
using testing::same_bits;

constexpr DType kTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};

std::vector<std::int64_t> sizes_around_chunks() { return {0, 1, 3, 16, 64, 65, 1000, 4095, 4096, 4097, 20011}; }
std::vector<std::int64_t> many_tensors() {  // more than a launch takes
  std::vector<std::int64_t> numels(230);
  for (std::size_t i = 0; i < numels.size(); ++i) numels[i] = static_cast<std::int64_t>(i % 37);
  return numels;
}

// Tensors on the host and on the device; every second one is not aligned.
template <class T>
struct Tensors {
  std::vector<std::int64_t> numels;
  std::vector<std::vector<T>> values;
  std::vector<const void*> on_host;
  std::vector<const void*> on_device;
  std::vector<std::unique_ptr<DeviceBuffer<T>>> memory;

  explicit Tensors(const std::vector<std::int64_t>& sizes) : numels(sizes) {
    for (const std::int64_t numel : numels) {
      std::vector<T> own(static_cast<std::size_t>(numel));
      for (std::size_t j = 0; j < own.size(); ++j) {
        own[j] = T(static_cast<float>((values.size() * 31 + j * 7) % 2001) / 64.0F - 15);
      }
      values.push_back(own);
    }
  }
  void upload() {
    for (std::size_t i = 0; i < values.size(); ++i) {
      memory.push_back(std::make_unique<DeviceBuffer<T>>(values[i], i % 2));
      on_host.push_back(values[i].data());
      on_device.push_back(memory.back()->data());
    }
  }
};

template <class From, class To>
void check_pack(DType from, DType to, Tensors<From>& tensors, std::int64_t alignment, double scale) {
  tensors.upload();
  const Stream stream;
  const FlatLayout layout = flat_layout(tensors.numels, to, alignment);
  const auto numel = static_cast<std::size_t>(layout.numel);
  std::vector<To> expected(numel);
  const PackedFacts facts = pack(tensors.on_host, tensors.numels, from, layout, to, scale, expected.data(), serial_for);

  const DeviceBuffer<To> flat(numel);
  cuda::pack(tensors.on_device, tensors.numels, from, layout, to, scale, flat.data(), {}, stream);
  CHECK(same_bits(flat.read(stream), expected));

  const DeviceBuffer<To> again(numel);
  const DeviceBuffer<double> found(2);
  const DeviceBuffer<double> scratch(static_cast<std::size_t>(cuda::facts_scratch(tensors.numels, layout)));
  cuda::pack(tensors.on_device, tensors.numels, from, layout, to, scale, again.data(),
             {.facts = found.data(), .scratch = scratch.data()}, stream);
  CHECK(same_bits(again.read(stream), expected));
  const std::vector<double> known = found.read(stream);
  CHECK_EQ(known[0], facts.finite ? 1.0 : 0.0);
  if (facts.finite) CHECK(std::abs(known[1] - facts.sum_of_squares) <= 1e-5 * facts.sum_of_squares);
}

}  // namespace

TEST(packs_all_types) {
  for (const DType from : kTypes) {
    for (const DType to : kTypes) {
      dispatch(from, [&]<class From>(Type<From>) {
        dispatch(to, [&]<class To>(Type<To>) {
          for (const std::int64_t alignment : {1, 64}) {
            Tensors<From> tensors({0, 1, 3, 4095, 4097, 5000});
            check_pack<From, To>(from, to, tensors, alignment, 0.5);
          }
        });
      });
    }
  }
}

TEST(packs_all_sizes_and_copies_bits) {
  for (const auto& sizes : {sizes_around_chunks(), many_tensors()}) {
    for (const double scale : {1.0, -0.5}) {
      Tensors<float> tensors(sizes);
      if (scale == 1.0) tensors.values.back().assign(tensors.values.back().size(), -std::nanf("1"));
      check_pack<float, float>(DType::kFloat32, DType::kFloat32, tensors, 64, scale);
    }
  }
}

TEST(finds_what_is_not_finite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t place : {std::size_t{0}, std::size_t{4095}, std::size_t{4096}, std::size_t{20010}}) {
      Tensors<float> tensors(sizes_around_chunks());
      tensors.values.back()[place] = bad;
      check_pack<float, float>(DType::kFloat32, DType::kFloat32, tensors, 64, 0.25);
    }
  }
}

#ifndef CUDA_ON_HOST
// On the host this would take minutes: 65538 blocks.
TEST(more_chunks_than_other_dimensions_of_a_grid_take) {
  const std::int64_t numel = (std::int64_t{1} << 28) + 4097;
  const cuda::DeviceMemory from(static_cast<std::size_t>(numel) * sizeof(BFloat16));
  const DeviceBuffer<BFloat16> to(static_cast<std::size_t>(numel));
  const DeviceBuffer<double> facts(2);
  const Stream stream;
  testing::must(cudaMemsetAsync(from.data(), 0x3f, static_cast<std::size_t>(numel) * sizeof(BFloat16), stream));
  const FlatLayout layout = flat_layout({{numel}}, DType::kBFloat16, 64);
  const DeviceBuffer<double> scratch(static_cast<std::size_t>(cuda::facts_scratch({{numel}}, layout)));
  cuda::pack({{from.data()}}, {{numel}}, DType::kBFloat16, layout, DType::kBFloat16, 2, to.data(),
             {.facts = facts.data(), .scratch = scratch.data()}, stream);
  const auto packed = to.read(stream);
  for (const std::size_t i : {std::size_t{0}, std::size_t{1} << 27, packed.size() - 1}) {
    CHECK_EQ(static_cast<float>(packed[i]), 1.4921875F);  // 2 * 0x3f3f
  }
  CHECK_EQ(facts.read(stream)[0], 1.0);
}
#endif

TEST(unpacks) {
  for (const DType dtype : kTypes) {
    dispatch(dtype, [&]<class T>(Type<T>) {
      for (const double scale : {1.0, -0.5}) {
        Tensors<T> tensors({0, 1, 3, 16, 65, 4096, 4097});
        tensors.upload();
        const Stream stream;
        const FlatLayout layout = flat_layout(tensors.numels, dtype, 64);
        std::vector<T> flat(static_cast<std::size_t>(layout.numel));
        pack(tensors.on_host, tensors.numels, dtype, layout, dtype, 1.0, flat.data(), serial_for);
        std::vector<void*> to;
        std::vector<void*> to_device;
        std::vector<std::unique_ptr<DeviceBuffer<T>>> memory;
        for (auto& values : tensors.values) {
          to.push_back(values.data());
          memory.push_back(std::make_unique<DeviceBuffer<T>>(values.size()));
          to_device.push_back(memory.back()->data());
        }
        const DeviceBuffer<T> flat_device(flat);
        cuda::unpack(flat_device.data(), tensors.numels, layout, dtype, scale, to_device, stream);
        unpack(flat.data(), tensors.numels, layout, dtype, scale, to, serial_for);
        for (std::size_t i = 0; i < memory.size(); ++i) CHECK(same_bits(memory[i]->read(stream), tensors.values[i]));
      }
    });
  }
}

}  // namespace fastseq
