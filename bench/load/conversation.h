// What one stream says and how it understands the answers: proto/longshort/v1/sequence.proto from the client's side.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wire.h"

using Errors = std::map<std::string, long>;  // how often each happened

// What a message from the server is.
enum class Heard {
  kAnswer,  // to what was sent last
  kNotice,  // of its own accord: the answer is still to come
  kError,   // instead of an answer: the step numbers of this stream are no longer right
};

class Conversation {
 public:
  virtual ~Conversation() = default;
  // Returns the next message that opens sessions; empty once all are open.
  virtual std::string NextOpening() = 0;
  // Returns the next message of values, numbered with the steps that the sessions have reached.
  virtual std::string NextValues() = 0;
  // Judges what came; errors are counted by reason.
  virtual Heard Judge(std::string_view message, Errors& errors) = 0;
  // Returns how many steps a message of values moves its sessions by, in all.
  virtual long StepsAMessage() const = 0;
};

inline std::string Open(const std::string& model, const std::string& session_id) {
  std::string key, open;
  PutBytes(key, 2, session_id);
  PutBytes(open, 1, key);
  PutBytes(open, 2, model);
  return open;
}

// Counts an Error message by its reason.
inline void CountError(std::string_view error, Errors& errors) {
  for (Fields field(error); field.Next();) {
    if (field.number == 2) ++errors[std::string(field.bytes)];
  }
}

// Stream: one session, numbered messages of a fixed number of steps. An echo of these messages passes for answers,
// since the fields of requests and responses have the same numbers.
class OneSession : public Conversation {
 public:
  OneSession(const std::string& model, const std::string& session_id, int steps, int answers) : steps_(steps) {
    PutBytes(opening_, 1, Open(model, session_id));
    PutColumn(values_, 1, std::vector<float>(steps, 0.5f));
    if (answers != 0) PutNumber(values_, 4, answers);
  }

  std::string NextOpening() override { return std::exchange(opening_, {}); }

  std::string NextValues() override {
    std::string values = values_, request;
    PutNumber(values, 3, step_);
    PutBytes(request, 2, values);
    step_ += steps_;
    return request;
  }

  Heard Judge(std::string_view message, Errors& errors) override {
    Fields kind(message);
    if (!kind.Next()) return ++errors["no message of the contract"], Heard::kError;
    if (kind.number == 3) return CountError(kind.bytes, errors), Heard::kError;
    return kind.number == 4 ? Heard::kNotice : Heard::kAnswer;
  }

  long StepsAMessage() const override { return steps_; }

 private:
  const long steps_;
  std::string opening_;
  std::string values_;
  uint64_t step_ = 0;
};

// StreamFrames: many sessions, a block of them in each frame, the blocks in turn.
class ManySessions : public Conversation {
 public:
  ManySessions(const std::string& model, const std::string& id_prefix, long sessions, long rows)
      : model_(model), id_prefix_(id_prefix), sessions_(sessions), rows_(std::min(rows, sessions)),
        values_(rows_, 0.5f), handles_(rows_), steps_(rows_) {}

  std::string NextOpening() override {
    std::string request;
    for (const long end = std::min(sessions_, opened_ + kOpensAFrame); opened_ < end; ++opened_) {
      std::string open;
      PutNumber(open, 1, opened_);
      PutBytes(open, 2, Open(model_, id_prefix_ + std::to_string(opened_)));
      PutBytes(request, 1, open);
    }
    return request;
  }

  std::string NextValues() override {
    for (long row = 0; row < rows_; ++row) handles_[row] = first_ + row;
    std::fill(steps_.begin(), steps_.end(), round_);
    first_ += rows_;
    if (first_ + rows_ > sessions_) first_ = 0, ++round_;  // those of a last block that is not full never step
    std::string request;
    PutColumn(request, 2, handles_);
    PutColumn(request, 4, steps_);
    PutColumn(request, 5, values_);
    return request;
  }

  Heard Judge(std::string_view message, Errors& errors) override {
    bool has_failed = false;
    for (Fields part(message); part.Next();) {
      if (part.number != 8) continue;
      has_failed = true;
      for (Fields field(part.bytes); field.Next();) {
        if (field.number == 2) CountError(field.bytes, errors);
      }
    }
    return has_failed ? Heard::kError : Heard::kAnswer;
  }

  long StepsAMessage() const override { return rows_; }

 private:
  static constexpr long kOpensAFrame = 1024;
  const std::string model_, id_prefix_;
  const long sessions_, rows_;
  const std::vector<float> values_;
  std::vector<uint32_t> handles_;
  std::vector<uint64_t> steps_;
  long opened_ = 0;
  long first_ = 0;      // the block that is next
  uint64_t round_ = 0;  // the step that its sessions have reached
};
