// A bidirectional call of raw messages on gRPC's C core: a message out and one in are one operation with one event,
// where the C++ API has two, a fifth of the cost.
#pragma once

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <string>

class Call;

// What an event is about: the tags of the completion queue.
struct Tag {
  Call* call;
  enum Kind { kExchange, kEnd } kind;
};

inline grpc_arg Integer(const char* key, int value) {
  grpc_arg argument = {};
  argument.type = GRPC_ARG_INTEGER;
  argument.key = const_cast<char*>(key);  // the core copies it
  argument.value.integer = value;
  return argument;
}

inline grpc_channel* Connect(const std::string& target, int number) {
  grpc_arg arguments[] = {
      // Channels of one target share a connection unless told otherwise.
      Integer(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
      Integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1),
      Integer("bench.channel", number),
  };
  const grpc_channel_args all = {3, arguments};
  grpc_channel_credentials* insecure = grpc_insecure_credentials_create();
  grpc_channel* channel = grpc_channel_create(target.c_str(), insecure, &all);
  grpc_channel_credentials_release(insecure);
  return channel;
}

class Call {
 public:
  Call(grpc_channel* channel, grpc_completion_queue* queue, const std::string& method, int stream)
      : stream(stream) {
    grpc_metadata_array_init(&initial_);
    grpc_metadata_array_init(&trailing_);
    call_ = grpc_channel_create_call(channel, nullptr, GRPC_PROPAGATE_DEFAULTS, queue,
                                     grpc_slice_from_copied_string(method.c_str()), nullptr,
                                     gpr_inf_future(GPR_CLOCK_MONOTONIC), nullptr);
    grpc_op status = {};
    status.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    status.data.recv_status_on_client = {&trailing_, &status_, &details_, nullptr};
    grpc_call_start_batch(call_, &status, 1, &end_, nullptr);
  }

  // Sends a message and waits for the next one; an event of kExchange follows.
  void Exchange(const std::string& message) {
    grpc_slice slice = grpc_slice_from_copied_buffer(message.data(), message.size());
    sent_ = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    grpc_op operations[4] = {};
    operations[0].op = GRPC_OP_SEND_MESSAGE;
    operations[0].data.send_message.send_message = sent_;
    operations[1] = Receiving();
    if (!has_begun_) {
      operations[2].op = GRPC_OP_SEND_INITIAL_METADATA;
      operations[3].op = GRPC_OP_RECV_INITIAL_METADATA;
      operations[3].data.recv_initial_metadata.recv_initial_metadata = &initial_;
    }
    grpc_call_start_batch(call_, operations, has_begun_ ? 2 : 4, &exchange_, nullptr);
    has_begun_ = true;
  }

  // Waits for one more message; an event of kExchange follows.
  void Receive() {
    const grpc_op receiving = Receiving();
    grpc_call_start_batch(call_, &receiving, 1, &exchange_, nullptr);
  }

  // Moves what has come to `message`; false where the stream has ended instead.
  bool TakeMessage(std::string& message) {
    if (sent_ != nullptr) grpc_byte_buffer_destroy(sent_);
    sent_ = nullptr;
    if (received_ == nullptr) return false;
    grpc_byte_buffer_reader reader;
    grpc_byte_buffer_reader_init(&reader, received_);
    message.clear();
    for (grpc_slice piece; grpc_byte_buffer_reader_next(&reader, &piece); grpc_slice_unref(piece)) {
      message.append(reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(piece)), GRPC_SLICE_LENGTH(piece));
    }
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(received_);
    received_ = nullptr;
    return true;
  }

  // Says that nothing more will be sent. The server ends the stream; its event of kEnd follows.
  void HalfClose() {
    grpc_op close = {};
    close.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    if (has_begun_) grpc_call_start_batch(call_, &close, 1, nullptr, nullptr);
    else grpc_call_cancel(call_, nullptr);
  }

  // Returns how the stream ended, after kEnd.
  std::string Status() const {
    return "status " + std::to_string(status_) + " " +
           std::string(reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(details_)), GRPC_SLICE_LENGTH(details_));
  }

  bool HasSucceeded() const { return status_ == GRPC_STATUS_OK; }

  const int stream;  // its number

 private:
  grpc_op Receiving() {
    grpc_op receiving = {};
    receiving.op = GRPC_OP_RECV_MESSAGE;
    receiving.data.recv_message.recv_message = &received_;
    return receiving;
  }

  grpc_call* call_;
  bool has_begun_ = false;
  grpc_byte_buffer* sent_ = nullptr;
  grpc_byte_buffer* received_ = nullptr;
  grpc_metadata_array initial_, trailing_;
  grpc_status_code status_ = GRPC_STATUS_OK;
  grpc_slice details_ = grpc_empty_slice();
  Tag exchange_{this, Tag::kExchange}, end_{this, Tag::kEnd};
};
