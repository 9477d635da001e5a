// The command line of stream_load: --name=value, each with a default.
#pragma once

#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <type_traits>

struct Options {
  std::string target = "127.0.0.1:50051";
  std::string method = "/longshort.v1.SequenceService/Stream";
  std::string model = "m";
  std::string id_prefix = "bench-";  // of the sessions' ids
  int streams = 1;
  int channels = 8;        // connections that the streams share
  int steps = 1;           // in a message of values on a stream of one session
  int answers = 0;         // the number in enum Answers
  long sessions = 0;       // on each stream, in frames; 0: one session a stream, without frames
  long rows = 1024;        // of a frame
  double rate = 0;         // messages a second of all streams, open loop; 0: the next when the last is answered
  long messages = 0;       // that each stream sends before the load ends; 0: until the time is up
  double settle_s = 0.5;   // under load before the measuring begins
  double seconds = 2;      // of measuring
  int opening = 64;        // streams that are being opened at a time
  double ramp_timeout_s = 30;  // then the load begins with the streams that are open
};

// Reads the command line; ends the program with 2 where an option is unknown.
inline Options ReadOptions(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    if (word.rfind("--", 0) != 0 || equals == std::string::npos) given[word];
    else given[word.substr(2, equals - 2)] = word.substr(equals + 1);
  }
  const auto take = [&given](const char* name, auto& option) {
    const auto found = given.find(name);
    if (found == given.end()) return;
    if constexpr (std::is_same_v<decltype(option), std::string&>) option = found->second;
    else option = static_cast<std::decay_t<decltype(option)>>(std::atof(found->second.c_str()));
    given.erase(found);
  };
  Options options;
  take("target", options.target);
  take("method", options.method);
  take("model", options.model);
  take("id-prefix", options.id_prefix);
  take("streams", options.streams);
  take("channels", options.channels);
  take("steps", options.steps);
  take("answers", options.answers);
  take("sessions", options.sessions);
  take("rows", options.rows);
  take("rate", options.rate);
  take("messages", options.messages);
  take("settle-s", options.settle_s);
  take("seconds", options.seconds);
  take("opening", options.opening);
  take("ramp-timeout-s", options.ramp_timeout_s);
  if (!given.empty()) {
    std::cerr << "stream_load: unknown option " << given.begin()->first << std::endl;
    std::exit(2);
  }
  return options;
}
