// A load of gRPC streams for `python -m bench`: opens them, waits until each has had an answer, then sends values in
// closed or open loop and prints what came back as one line of JSON. Before that it prints `measuring` and `measured`
// where the measuring begins and ends, so that whoever started it can read the server's clock of CPU time there.
//
// One thread, and about 10 us a message at 128 streams: half of what an empty echo takes.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <deque>

#include "channel.h"
#include "conversation.h"
#include "histogram.h"
#include "options.h"

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }
Clock::duration Duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}
int64_t Nanoseconds(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
}

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

struct Stream {
  enum State { kUnopened, kOpening, kFirstValues, kIdle, kWaiting, kOver };

  State state = kUnopened;
  std::unique_ptr<Call> call;
  std::unique_ptr<Conversation> conversation;
  Time since;              // when the message that is unanswered was due
  std::deque<Time> due;    // open loop: messages that could not be sent yet
  long sent = 0;           // messages of values under load
  long answers = 0;        // while measuring
};

class Load {
 public:
  explicit Load(const Options& options)
      : options_(options), queue_(grpc_completion_queue_create_for_next(nullptr)), streams_(options.streams) {
    for (int i = 0; i < std::min(options.channels, options.streams); ++i) {
      channels_.push_back(Connect(options.target, i));
    }
  }

  void Run() {
    Ramp();
    begin_ = Clock::now();
    is_loaded_ = true;
    if (options_.rate == 0) {
      for (Stream& stream : streams_) SendIfIdle(stream, begin_);
    }
    Drive(begin_ + Duration(options_.settle_s));
    Measure();
    Report();
    Leave();
  }

 private:
  // Opens the streams, a bounded number at a time, and sends each its first value.
  void Ramp() {
    const Time begin = Clock::now(), end = begin + Duration(options_.ramp_timeout_s);
    int next = 0;
    while (num_ready_ + num_over_ < options_.streams && Clock::now() < end) {
      while (next < options_.streams && next - num_ready_ - num_over_ < options_.opening) Begin(next++);
      HandleOne(end);
    }
    ramp_s_ = Seconds(Clock::now() - begin);
  }

  void Begin(int number) {
    Stream& stream = streams_[number];
    const std::string id = options_.id_prefix + std::to_string(number);
    if (options_.sessions > 0) {
      stream.conversation =
          std::make_unique<ManySessions>(options_.model, id + "-", options_.sessions, options_.rows);
    } else {
      stream.conversation = std::make_unique<OneSession>(options_.model, id, options_.steps, options_.answers);
    }
    stream.state = Stream::kOpening;
    stream.call = std::make_unique<Call>(channels_[number % channels_.size()], queue_, options_.method, number);
    stream.call->Exchange(stream.conversation->NextOpening());
  }

  void Measure() {
    latencies_.Clear();
    lags_.Clear();
    num_answers_ = 0;
    for (Stream& stream : streams_) stream.answers = 0;
    is_measuring_ = true;
    const double cpu_before_s = CpuSeconds();
    const Time begin = Clock::now();
    std::puts("measuring");
    std::fflush(stdout);
    Drive(begin + Duration(options_.seconds));
    measured_s_ = Seconds(Clock::now() - begin);
    std::puts("measured");
    std::fflush(stdout);
    cpu_s_ = CpuSeconds() - cpu_before_s;
    is_measuring_ = false;
  }

  // Keeps the load up until `end`, or until all streams have sent what they were to send.
  void Drive(Time end) {
    while (Clock::now() < end && !IsDone()) {
      const Time next = options_.rate == 0 ? end : std::min(end, NextDue());
      HandleOne(next);
      if (options_.rate > 0) SendWhatIsDue();
    }
  }

  bool IsDone() const { return options_.messages > 0 && num_done_ + num_over_ >= options_.streams; }

  // Open loop: message k of all is due k intervals after the beginning, the streams taking turns.
  Time NextDue() const { return begin_ + Duration(num_due_ / options_.rate); }

  void SendWhatIsDue() {
    const Time now = Clock::now();
    for (Time due = NextDue(); due <= now; due = NextDue()) {
      Stream& stream = streams_[num_due_++ % streams_.size()];
      if (stream.state == Stream::kIdle) {
        // This client's own timer may be late, by a millisecond or so: that is told by itself and is no latency.
        if (is_measuring_) lags_.Add(Nanoseconds(now - due));
        SendIfIdle(stream, now);
      } else {
        stream.due.push_back(due);
      }
    }
  }

  void SendIfIdle(Stream& stream, Time since) {
    if (stream.state != Stream::kIdle) return;
    stream.state = Stream::kWaiting;
    stream.since = since;
    ++stream.sent;
    stream.call->Exchange(stream.conversation->NextValues());
  }

  // Waits for one event, until `end` at most.
  void HandleOne(Time end) {
    const int64_t left = std::max<int64_t>(0, Nanoseconds(end - Clock::now()));
    const gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(left, GPR_TIMESPAN));
    const grpc_event event = grpc_completion_queue_next(queue_, deadline, nullptr);
    if (event.type != GRPC_OP_COMPLETE || event.tag == nullptr) return;
    const Tag& tag = *static_cast<Tag*>(event.tag);
    Stream& stream = streams_[tag.call->stream];
    if (tag.kind == Tag::kEnd) {
      // One that was half-closed ends well; any other end was not asked for.
      const bool was_asked_for = is_leaving_ || stream.state == Stream::kOver;
      if (!was_asked_for || !stream.call->HasSucceeded()) ++errors_[stream.call->Status()];
      GiveUp(stream);
      ++num_ended_;
    } else if (stream.call->TakeMessage(message_) && stream.state != Stream::kOver) {
      Hear(stream);
    }
  }

  void Hear(Stream& stream) {
    const Heard heard = stream.conversation->Judge(message_, errors_);
    if (heard == Heard::kNotice) return stream.call->Receive();
    if (heard == Heard::kError) {
      GiveUp(stream);
      return stream.call->HalfClose();
    }
    switch (stream.state) {
      case Stream::kOpening: {
        std::string opening = stream.conversation->NextOpening();
        if (opening.empty()) stream.state = Stream::kFirstValues, opening = stream.conversation->NextValues();
        return stream.call->Exchange(opening);
      }
      case Stream::kFirstValues:
        ++num_ready_;
        stream.state = Stream::kIdle;
        // A stream that took longer than the ramp joins the load.
        if (is_loaded_ && options_.rate == 0) SendIfIdle(stream, Clock::now());
        return;
      case Stream::kWaiting:
        return TakeAnswer(stream);
      default:
        return;
    }
  }

  void TakeAnswer(Stream& stream) {
    const Time now = Clock::now();
    stream.state = Stream::kIdle;
    if (is_measuring_) {
      latencies_.Add(Nanoseconds(now - stream.since));
      ++stream.answers;
      ++num_answers_;
    }
    if (options_.messages > 0 && stream.sent == options_.messages) {
      ++num_done_;
    } else if (options_.rate == 0) {
      if (!is_leaving_) SendIfIdle(stream, now);
    } else if (!stream.due.empty()) {
      // It waited for an answer, as its caller would have: the latency counts from when it was due.
      SendIfIdle(stream, stream.due.front());
      stream.due.pop_front();
    }
  }

  void GiveUp(Stream& stream) {
    if (stream.state == Stream::kOver) return;
    if (stream.state >= Stream::kIdle) --num_ready_;
    stream.state = Stream::kOver;
    ++num_over_;
  }

  void Report() const {
    long served = 0, least = num_answers_, most = 0, unsent = 0;
    for (const Stream& stream : streams_) {
      served += stream.answers > 0;
      least = std::min(least, stream.answers);
      most = std::max(most, stream.answers);
      unsent += stream.due.size();
    }
    const long steps = num_answers_ * streams_[0].conversation->StepsAMessage();
    std::printf("{\"streams\": %d, \"opened\": %d, \"served\": %ld, \"ramp_s\": %.4f, \"seconds\": %.4f, ",
                options_.streams, num_ready_, served, ramp_s_, measured_s_);
    std::printf("\"messages\": %ld, \"steps\": %ld, \"least_answers\": %ld, \"most_answers\": %ld, ", num_answers_,
                steps, least, most);
    std::printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, ",
                latencies_.Quantile(0.5), latencies_.Quantile(0.99), latencies_.Quantile(0.999), latencies_.Max());
    std::printf("\"lag_p99_us\": %.1f, \"unsent\": %ld, \"client_cpu_s\": %.4f, \"errors\": {", lags_.Quantile(0.99),
                unsent, cpu_s_);
    const char* comma = "";
    for (const auto& [name, times] : errors_) {
      std::printf("%s\"%s\": %ld", comma, Printable(name).c_str(), times);
      comma = ", ";
    }
    std::puts("}}");
    std::fflush(stdout);
  }

  static std::string Printable(std::string text) {
    for (char& letter : text) {
      if (letter < ' ' || letter > '~' || letter == '"' || letter == '\\') letter = '?';
    }
    return text;
  }

  // Half-closes the streams and waits a little, so that the server ends them in order.
  void Leave() {
    is_leaving_ = true;
    int num_left = 0;
    for (Stream& stream : streams_) {
      if (stream.call == nullptr || stream.state == Stream::kOver) continue;
      stream.call->HalfClose();
      ++num_left;
    }
    num_ended_ = 0;
    for (const Time end = Clock::now() + Duration(2); num_ended_ < num_left && Clock::now() < end;) HandleOne(end);
  }

  const Options options_;
  grpc_completion_queue* const queue_;
  std::vector<grpc_channel*> channels_;
  std::vector<Stream> streams_;
  std::string message_;

  int num_ready_ = 0;  // streams that have had their first answer
  int num_over_ = 0;   // streams that have failed
  int num_done_ = 0;   // streams that have sent all they were to send
  int num_ended_ = 0;
  bool is_loaded_ = false, is_measuring_ = false, is_leaving_ = false;
  Time begin_;         // of the load
  long num_due_ = 0;   // messages that have been due since

  Histogram latencies_, lags_;
  long num_answers_ = 0;
  double ramp_s_ = 0, measured_s_ = 0, cpu_s_ = 0;
  Errors errors_;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options = ReadOptions(argc, argv);
  grpc_init();
  static Load load(options);
  load.Run();
  std::_Exit(0);  // the kernel is quicker at taking down 10,000 calls
}
