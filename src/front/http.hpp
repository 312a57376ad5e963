// HTTP/1.1 requests out of octets, strictly (RFC 9112): whatever two readers could take in two ways is refused, since it
// would be a way to smuggle a request past one of them. No I/O; one parser for each connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace front {

// What one request may take, octets.
struct HttpLimits {
    size_t target = 4096;
    size_t headers = 16 << 10;
    size_t body = 64 << 10;
    size_t message = 512 << 10;  // a whole request as it travels, so that endless headers or chunk extensions end, too
};

struct HttpRequest {
    std::string method, target, body;
    std::string request_id;  // of X-Request-ID; several lines are one list
    bool has_request_id = false;
    std::vector<std::pair<std::string, std::string>> kept;  // headers that the server was told to keep, names lower case
    bool keeps = true;       // the connection stays
    bool is_old = false;     // HTTP/1.0

    // What is kept of it while it waits.
    size_t octets() const {
        size_t count = target.size() + body.size() + request_id.size();
        for (const auto& [name, value] : kept) count += name.size() + value.size();
        return count;
    }
};

class HttpParser {
  public:
    enum class Found { nothing, request, error };

    HttpParser(const HttpLimits& limits, const std::vector<std::string>& kept) : limits_(&limits), kept_(&kept) {}

    void feed(const uint8_t* octets, size_t count) { in_.append(reinterpret_cast<const char*>(octets), count); }

    // The next whole request. After `error`, which `problem` names, the parser is of no more use.
    Found next(HttpRequest& request);

    const std::string& problem() const { return problem_; }

    // Part of a request is there.
    bool is_receiving() const { return state_ != State::head || at_ < in_.size(); }

    // Since the last call: whether the client waits for `100 Continue` before it sends its body.
    bool wants_continue() { return std::exchange(wants_continue_, false); }

  private:
    enum class State { head, body, chunk_size, chunk_data, chunk_end, trailer };

    Found fail(std::string problem);
    Found more();
    Found invalid() { return fail("not a valid HTTP/1.1 request"); }
    Found too_long() { return fail("body: at most " + std::to_string(limits_->body) + " octets"); }
    Found too_many_headers() { return fail("headers: at most " + std::to_string(limits_->headers) + " octets"); }
    void skip_empty_lines();
    bool is_method_possible() const;
    bool find_line(size_t& end);
    Found read_head();
    Found read_body();
    Found read_chunk_size();
    Found read_chunk_data();
    Found read_chunk_end();
    Found read_trailer();
    Found parse_head(std::string_view head);
    bool parse_request_line(std::string_view line);
    Found parse_header(std::string_view line);
    Found note_header(const std::string& name, std::string_view value);
    Found note_length(std::string_view value);
    void note_connection(std::string_view value);
    Found check_head();
    Found done();
    void take(size_t count) { at_ += count, message_ += count, scanned_ = at_; }

    const HttpLimits* limits_;
    const std::vector<std::string>* kept_;
    std::string in_;
    size_t at_ = 0;       // of in_: what comes before is read
    size_t scanned_ = 0;  // of in_: no line ends before, from at_ on
    size_t message_ = 0;  // octets of this request that are read
    State state_ = State::head;
    HttpRequest request_;
    size_t left_ = 0;     // of the body, or of the chunk
    size_t header_octets_ = 0;
    int hosts_ = 0, lengths_ = 0, encodings_ = 0;
    bool is_chunked_ = false, expects_ = false, says_close_ = false, says_keep_ = false, upgrades_ = false;
    bool wants_continue_ = false;
    std::string problem_;
};

}  // namespace front
