// Members of an ensemble: models of the same inputs, trained side by side.
#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "core/step/buffer.h"
#include "core/step/layer.h"
#include "core/step/model.h"

namespace fastseq::step {

namespace {

template <class T>
class Members : public Layer<T> {
 public:
  explicit Members(std::vector<std::vector<std::unique_ptr<Layer<T>>>> members) {
    for (auto& layers : members) models_.push_back(std::make_unique<Model<T>>(std::move(layers), serial_for));
  }

  std::int64_t outputs() const override { return width() * static_cast<std::int64_t>(models_.size()); }
  std::vector<T*> gradients() const override {
    std::vector<T*> all;
    for (const auto& model : models_) {
      const std::vector<T*> own = model->gradients();
      all.insert(all.end(), own.begin(), own.end());
    }
    return all;
  }
  std::int64_t state_count() const override {
    std::int64_t count = 0;
    for (const auto& model : models_) count += model->state_count();
    return count;
  }
  void set_state(const std::vector<T*>& state) override {
    std::span<T* const> rest = state;
    for (const auto& model : models_) {
      const auto count = static_cast<std::size_t>(model->state_count());
      model->set_state(rest.first(count));
      rest = rest.subspan(count);
    }
  }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    T* const y = y_.reserve(chunk.rows() * outputs());
    for (std::size_t m = 0; m < models_.size(); ++m) {
      const T* const own = models_[m]->forward(chunk, x);
      for (std::int64_t i = 0; i < chunk.rows(); ++i) std::copy_n(own + i * width(), width(), y + place(i, m));
    }
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& /*x*/, T* dy, bool /*wants_dx*/) override {
    T* const own = dy_.reserve(chunk.rows() * width());
    for (std::size_t m = 0; m < models_.size(); ++m) {
      for (std::int64_t i = 0; i < chunk.rows(); ++i) std::copy_n(dy + place(i, m), width(), own + i * width());
      models_[m]->backward(chunk, own, [](std::span<T* const> /*gradients*/) {});
    }
    return nullptr;
  }

 private:
  std::int64_t width() const { return models_[0]->outputs(); }
  std::int64_t place(std::int64_t row, std::size_t member) const {
    return row * outputs() + static_cast<std::int64_t>(member) * width();
  }

  std::vector<std::unique_ptr<Model<T>>> models_;
  Buffer<T> y_;
  Buffer<T> dy_;  // of a member
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_members(std::vector<std::vector<std::unique_ptr<Layer<T>>>> members) {
  return std::make_unique<Members<T>>(std::move(members));
}
template std::unique_ptr<Layer<float>> make_members(std::vector<std::vector<std::unique_ptr<Layer<float>>>>);
template std::unique_ptr<Layer<double>> make_members(std::vector<std::vector<std::unique_ptr<Layer<double>>>>);

}  // namespace fastseq::step
