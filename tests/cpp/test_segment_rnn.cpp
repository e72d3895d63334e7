// The default model of forecasters: its gradients against difference quotients of the loss.
#include <cstdint>

#include "check.h"
#include "ranges.h"
#include "trained.h"

namespace fastseq::step {

TEST(gradients_of_a_segment_rnn_are_difference_quotients) {
  for (const std::int64_t variables : {1, 2}) {
    constexpr std::int64_t kLags = 7;
    constexpr std::int64_t kFeatures = 3;
    constexpr std::int64_t kSegment = 3;
    constexpr std::int64_t kHidden = 5;
    constexpr std::int64_t kHorizon = 2;
    const Values levels{0.2, 0.7};
    Trained model;
    RecurrentOptions gru = options(Cell::kGru, kHidden, kHidden);
    gru.layers = variables;
    gru.carries = false;
    model.add(make_segment_rnn<double>({.horizon = kHorizon,
                                        .variables = variables,
                                        .outputs = 2,
                                        .lags = kLags,
                                        .features = kFeatures,
                                        .segment = kSegment,
                                        .hidden = kHidden},
                                       {.linear = model.new_linear(kLags, 2 * kHorizon),
                                        .embed = model.new_linear((kSegment + 1) * variables, kHidden),
                                        .recurrent = model.new_recurrent(gru),
                                        .mix = model.new_linear(kHidden, kHidden),
                                        .dropout = make_dropout<double>(0.3, kHidden, 0),
                                        .out = model.new_linear(kHidden, 2 * kHorizon * variables)}));
    const Data data{.outputs = 2 * kHorizon * variables, .inputs = kLags * kFeatures, .targets = kHorizon * variables};
    Step<double>& step = model.step({.kind = LossKind::kPinball, .parameters = levels});
    testing::for_every_width([&] { check_gradients(model, step, data); });
  }
}

}  // namespace fastseq::step
