#include "core/step/model.h"

namespace fastseq::step {

template <class T>
Model<T>::Model(std::vector<std::unique_ptr<Layer<T>>> layers, ParallelFor parallel_for)
    : layers_(std::move(layers)), parallel_for_(parallel_for), given_(layers_.size()) {
  for (const auto& layer : layers_) gradients_.push_back(layer->gradients());
}

template <class T>
std::vector<T*> Model<T>::gradients() const {
  std::vector<T*> all;
  for (const auto& each : gradients_) all.insert(all.end(), each.begin(), each.end());
  return all;
}

template <class T>
std::int64_t Model<T>::state_count() const {
  std::int64_t count = 0;
  for (const auto& layer : layers_) count += layer->state_count();
  return count;
}

template <class T>
void Model<T>::set_state(std::span<T* const> state) {
  auto next = state.begin();
  for (const auto& layer : layers_) {
    const std::int64_t count = layer->state_count();
    layer->set_state({next, next + count});
    next += count;
  }
}

template <class T>
const T* Model<T>::forward(const Chunk& chunk, const Rows<T>& x) {
  Rows<T> rows = x;
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    given_[l] = rows;
    const std::int64_t outputs = layers_[l]->outputs();
    rows = {layers_[l]->forward(chunk, rows), chunk.sequences * outputs, outputs};
  }
  return rows.data;
}

template <class T>
T* Model<T>::backward(const Chunk& chunk, T* dy, const std::function<void(std::span<T* const> gradients)>& ready,
                      bool wants_dx) {
  for (std::size_t l = layers_.size(); l-- > 0;) {
    dy = layers_[l]->backward(chunk, given_[l], dy, l > 0 || wants_dx);
    ready(gradients_[l]);
  }
  return dy;
}

template class Model<float>;
template class Model<double>;

}  // namespace fastseq::step
