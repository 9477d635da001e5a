// Protobuf's wire format as far as the load needs it: fields are appended to a string, and read from one in turn.
// Written by hand so that the load costs less than any server: a message is its template with a few bytes changed.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

inline void PutVarint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

inline void PutNumber(std::string& out, int field, uint64_t value) {
  PutVarint(out, field << 3 | kVarint);
  PutVarint(out, value);
}

inline void PutBytes(std::string& out, int field, std::string_view bytes) {
  PutVarint(out, field << 3 | kBytes);
  PutVarint(out, bytes.size());
  out.append(bytes);
}

// Appends a packed column of fixed-width numbers; protobuf's byte order is that of every machine this runs on.
template <typename Number>
void PutColumn(std::string& out, int field, const std::vector<Number>& column) {
  PutBytes(out, field, {reinterpret_cast<const char*>(column.data()), column.size() * sizeof(Number)});
}

// Walks the fields of one message. Where bytes are no protobuf it ends early, and the caller misses what it looked for.
class Fields {
 public:
  explicit Fields(std::string_view message) : left_(message) {}

  // Steps to the next field; false at the end.
  bool Next() {
    uint64_t key = 0;
    if (left_.empty() || !TakeVarint(key)) return false;
    number = static_cast<int>(key >> 3);
    switch (key & 7) {
      case kVarint: return TakeVarint(value);
      case kFixed64: return TakeBytes(8);
      case kFixed32: return TakeBytes(4);
      case kBytes: {
        uint64_t size = 0;
        return TakeVarint(size) && TakeBytes(size);
      }
      default: return false;
    }
  }

  int number = 0;
  uint64_t value = 0;      // of a varint
  std::string_view bytes;  // of everything else

 private:
  bool TakeVarint(uint64_t& taken) {
    taken = 0;
    for (int shift = 0; shift < 64 && !left_.empty(); shift += 7) {
      const uint8_t byte = left_.front();
      left_.remove_prefix(1);
      taken |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool TakeBytes(uint64_t size) {
    if (size > left_.size()) return false;
    bytes = left_.substr(0, size);
    left_.remove_prefix(size);
    return true;
  }

  std::string_view left_;
};
