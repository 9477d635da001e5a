// Latencies in buckets whose width is a fixed share of their value, as HdrHistogram has them: 1.6 % here, from a
// nanosecond to centuries in 32 KiB, however many are counted.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

class Histogram {
 public:
  void Add(int64_t nanoseconds) {
    ++buckets_[IndexOf(std::max<int64_t>(nanoseconds, 0))];
    ++count_;
    max_ = std::max(max_, nanoseconds);
  }

  void Clear() { *this = Histogram(); }

  // Returns the middle of the bucket that holds the given share of all values, in microseconds; 0 where there are none.
  double Quantile(double share) const {
    if (count_ == 0) return 0;
    uint64_t left = std::min(count_ - 1, static_cast<uint64_t>(share * count_));
    for (size_t index = 0; index < buckets_.size(); ++index) {
      if (left < buckets_[index]) return std::min(MiddleOf(index) / 1e3, Max());
      left -= buckets_[index];
    }
    return Max();
  }

  double Max() const { return max_ / 1e3; }

 private:
  // Values below 64 have a bucket each; of greater ones the highest bit picks a row and the six bits after it a bucket.
  static constexpr int kBits = 6;
  static constexpr uint64_t kRow = 1 << kBits;

  static size_t IndexOf(uint64_t value) {
    if (value < kRow) return value;
    const int shift = 63 - __builtin_clzll(value) - kBits;
    return kRow * (shift + 1) + ((value >> shift) - kRow);
  }

  static double MiddleOf(size_t index) {
    if (index < kRow) return index;
    const int shift = index / kRow - 1;
    return (index % kRow + kRow + 0.5) * static_cast<double>(uint64_t{1} << shift);
  }

  std::array<uint64_t, kRow * 64> buckets_{};
  uint64_t count_ = 0;
  int64_t max_ = 0;
};
