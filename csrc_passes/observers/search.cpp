#include "observers/search.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "observers/histogram.h"
#include "observers/kernels.h"

namespace jitquant {

namespace {

constexpr float kFurthest = 3.4e38F;  // a range of the largest numbers would be infinitely wide
constexpr float kBeyond = 1.05F;      // data of few distinct values may lie on a wider grid
constexpr int64_t kCoarse = 48;

std::vector<float> toVector(const at::Tensor& values) {
  const auto* data = values.const_data_ptr<float>();
  return {data, data + values.numel()};
}

// What torch.linspace and torch.logspace give, float32.
std::vector<float> linear(double first, double last, int64_t count) {
  return toVector(at::linspace(first, last, count, at::kFloat));
}
std::vector<float> coarseFactors() {
  return toVector(at::logspace(0, -10, kCoarse, /*base=*/2.0, at::kFloat));
}

size_t leastOf(const std::vector<double>& errors) {
  return static_cast<size_t>(std::min_element(errors.begin(), errors.end()) - errors.begin());
}

struct ScaleAndZero {
  float scale;
  int64_t zero_point;
};

// Observer._qparams for one range, in float32 as there.
ScaleAndZero qparamsOf(Bounds bounds, const Grid& grid) {
  const float low = std::min(bounds.low, 0.0F);
  const float high = std::max(bounds.high, 0.0F);
  const auto steps = static_cast<float>(grid.quant_max - grid.quant_min);
  if (grid.symmetric) {
    return {std::max(std::max(-low, high) / (steps / 2), grid.eps), grid.symmetric_zero_point};
  }
  const float span = high - low;
  float scale = std::isfinite(span) ? span / steps : high / steps - low / steps;
  scale = std::max(scale, grid.eps);
  const int64_t zero_point = grid.quant_min - static_cast<int64_t>(std::nearbyint(low / scale));
  return {scale, std::clamp(zero_point, grid.quant_min, grid.quant_max)};
}

class Search {
 public:
  Search(const Histogram& histogram, const Grid& grid)
      : grid_(grid), full_{histogram.low, histogram.high} {
    const double width = std::ldexp(1.0, static_cast<int>(histogram.exponent));
    const auto first = static_cast<int64_t>(std::floor(full_.low / width)) - histogram.offset;
    const auto last = static_cast<int64_t>(std::floor(full_.high / width)) - histogram.offset;
    double density_before = 0;
    for (int64_t bin = first; bin <= last + 1; ++bin) {
      const auto count = bin > last ? 0.0 : static_cast<double>(histogram.counts[bin]);
      const double edge = static_cast<double>(histogram.offset + bin) * width;
      const double density = count / width;
      if (density != density_before) {
        edges_.push_back(edge);
        weights_.push_back(density_before - density);
      }
      density_before = density;
      if (count == 0) continue;
      const double next = static_cast<double>(histogram.offset + bin + 1) * width;
      centers_.push_back((next + edge) / 2);
      counts_.push_back(count);
    }
  }

  Bounds run() const {
    const std::vector<std::vector<float>> finer = {linear(1 - 0.15, 1 + 0.15, 25),
                                                   linear(1 - 0.0125, 1 + 0.0125, 13)};
    if (grid_.symmetric) return runSymmetric(finer);
    Bounds best = coarse();
    std::vector<Bounds> tried;
    for (const std::vector<float>& factors : finer) {
      tried.clear();
      for (const float factor : factors) {
        tried.push_back({best.low, std::min(best.high * factor, full_.high * kBeyond)});
      }
      tried.push_back({best.low, full_.high});
      best = this->best(tried);
      tried.clear();
      for (const float factor : factors) {
        tried.push_back({std::max(best.low * factor, full_.low * kBeyond), best.high});
      }
      tried.push_back({full_.low, best.high});
      best = this->best(tried);
    }
    return this->best({best, full_});
  }

  Bounds best(const std::vector<Bounds>& candidates) const {
    std::vector<double> errors;
    std::vector<Bounds> finite;
    for (const Bounds& bounds : candidates) {
      finite.push_back({std::max(bounds.low, -kFurthest), std::min(bounds.high, kFurthest)});
      errors.push_back(error(finite.back()));
    }
    return finite[leastOf(errors)];
  }

 private:
  Bounds runSymmetric(std::vector<std::vector<float>> all_factors) const {
    const float full = std::max(-full_.low, full_.high);
    float bound = full;
    all_factors.insert(all_factors.begin(), coarseFactors());
    for (const std::vector<float>& factors : all_factors) {
      std::vector<Bounds> tried;
      for (const float factor : factors) {
        const float wide = std::min(bound * factor, full * kBeyond);
        tried.push_back({-wide, wide});
      }
      tried.push_back({-full, full});
      bound = best(tried).high;
    }
    return {-bound, bound};
  }

  // The sum over all bins of the integral of the squared error, values spread evenly over each bin.
  //
  // With u = x / scale + zero_point, q = clamp(round(u)) and r = u - q, the integral up to x is
  // scale^3 * (q / 12 + r^3 / 3): a whole step is worth 1 / 12. What the integral at an edge counts
  // for is its weight.
  double error(Bounds bounds) const {
    const auto [scale, zero_point] = qparamsOf(bounds, grid_);
    const double step = scale;
    const double sum =
        weightedIntegrals(edges_.data(), weights_.data(), static_cast<int64_t>(edges_.size()), step,
                          static_cast<double>(zero_point), static_cast<double>(grid_.quant_min),
                          static_cast<double>(grid_.quant_max));
    return sum * (step * step * step) / 3;
  }

  // The best of a joint grid of bounds, down to 1 / 1024 of the full range on each side, under the
  // usual model: step^2 / 12 inside, (x - bound)^2 outside.
  Bounds coarse() const {
    struct Outside {
      float bound;
      double error = 0;
      double count = 0;
    };
    std::vector<Outside> lows;
    std::vector<Outside> highs;
    for (const float factor : coarseFactors()) {
      Outside low{std::min(full_.low, 0.0F) * factor};
      for (size_t i = 0; i < centers_.size() && centers_[i] < low.bound; ++i) {
        const double distance = static_cast<double>(low.bound) - centers_[i];
        low.error += distance * distance * counts_[i];
        low.count += counts_[i];
      }
      lows.push_back(low);
      Outside high{std::max(full_.high, 0.0F) * factor};
      for (size_t i = centers_.size(); i-- > 0 && centers_[i] > high.bound;) {
        const double distance = centers_[i] - static_cast<double>(high.bound);
        high.error += distance * distance * counts_[i];
        high.count += counts_[i];
      }
      highs.push_back(high);
    }
    double total = 0;
    for (const double count : counts_) total += count;
    const auto steps = static_cast<double>(grid_.quant_max - grid_.quant_min);
    std::vector<double> errors;
    for (const Outside& low : lows) {
      for (const Outside& high : highs) {
        const double step = static_cast<double>(high.bound - low.bound) / steps;
        const double inside = total - low.count - high.count;
        errors.push_back(low.error + high.error + inside * step * step / 12);
      }
    }
    const size_t least = leastOf(errors);
    return {lows[least / highs.size()].bound, highs[least % highs.size()].bound};
  }

  Grid grid_;
  Bounds full_;
  // Edges between bins of different density, and what the integral there counts for.
  std::vector<double> edges_;
  std::vector<double> weights_;
  // Of the bins that are not empty.
  std::vector<double> centers_;
  std::vector<double> counts_;
};

}  // namespace

Bounds searchBounds(const Histogram& histogram, const Grid& grid) {
  return Search(histogram, grid).run();
}

Bounds bestBounds(const Histogram& histogram, const Grid& grid,
                  const std::vector<Bounds>& candidates) {
  return Search(histogram, grid).best(candidates);
}

}  // namespace jitquant
