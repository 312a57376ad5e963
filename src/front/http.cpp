#include "http.hpp"

#include <algorithm>
#include <array>

namespace front {

namespace {

// RFC 9110 and the registry it began; who asks for something else is taken for no HTTP client at all.
constexpr std::array<std::string_view, 27> METHODS = {
    "GET",  "POST", "HEAD", "PUT",    "DELETE", "OPTIONS", "PATCH", "TRACE",  "CONNECT", "ACL",    "BIND",     "CHECKOUT",  "COPY", "LINK",
    "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "REBIND", "REPORT", "SEARCH", "UNBIND", "UNLOCK"};
constexpr size_t LENGTH_DIGITS_MAX = 20, CHUNK_DIGITS_MAX = 16;

bool is_token(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

bool is_text(char c) {
    const auto octet = static_cast<unsigned char>(c);
    return octet == '\t' || (octet >= 0x20 && octet != 0x7f);
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

std::string lowered(std::string_view text) {
    std::string found(text);
    std::transform(found.begin(), found.end(), found.begin(), lower);
    return found;
}

std::string_view trimmed(std::string_view text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
    return text;
}

int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

}  // namespace

HttpParser::Found HttpParser::fail(std::string problem) {
    problem_ = std::move(problem);
    return Found::error;
}

// Not whole yet: wait, unless it has grown beyond all measure.
HttpParser::Found HttpParser::more() {
    if (message_ + in_.size() - at_ > limits_->message)
        return fail("request: at most " + std::to_string(limits_->message) + " octets");
    if (at_ == in_.size() || at_ > 16384) {
        in_.erase(0, at_);
        scanned_ -= at_;
        at_ = 0;
        if (in_.empty() && in_.capacity() > 65536) in_.shrink_to_fit();
    }
    return Found::nothing;
}

HttpParser::Found HttpParser::next(HttpRequest& request) {
    Found found = Found::nothing;
    while (found == Found::nothing) {
        const size_t place = at_;
        const State before = state_;
        switch (state_) {
            case State::head: found = read_head(); break;
            case State::body: found = read_body(); break;
            case State::chunk_size: found = read_chunk_size(); break;
            case State::chunk_data: found = read_chunk_data(); break;
            case State::chunk_end: found = read_chunk_end(); break;
            case State::trailer: found = read_trailer(); break;
        }
        if (found == Found::nothing && state_ == before && at_ == place) return more();
    }
    if (found == Found::request) request = std::exchange(request_, {});
    return found;
}

// Between requests, empty lines mean nothing (RFC 9112 clause 2.2).
void HttpParser::skip_empty_lines() {
    while (in_.size() - at_ >= 2 && in_[at_] == '\r' && in_[at_ + 1] == '\n') take(2);
}

bool HttpParser::is_method_possible() const {
    const std::string_view start = std::string_view(in_).substr(at_, 8);
    return start.empty() || start == "\r" || std::any_of(METHODS.begin(), METHODS.end(), [&](std::string_view method) {
        const size_t known = std::min(method.size(), start.size());
        return start.substr(0, known) == method.substr(0, known) && (start.size() <= known || start[known] == ' ');
    });
}

// Where the line ends that begins at at_: the place of its CR LF. False: it has not come, or `problem_` is set.
bool HttpParser::find_line(size_t& end) {
    for (; scanned_ < in_.size(); ++scanned_) {
        if (in_[scanned_] == '\n') return problem_ = "not a valid HTTP/1.1 request", false;
        if (in_[scanned_] != '\r') continue;
        if (scanned_ + 1 == in_.size()) return false;
        if (in_[scanned_ + 1] != '\n') return problem_ = "not a valid HTTP/1.1 request", false;
        end = scanned_;
        return true;
    }
    return false;
}

HttpParser::Found HttpParser::read_head() {
    skip_empty_lines();
    if (!is_method_possible()) return invalid();
    // Line by line up to the empty one; scanned_ stays behind the last whole line.
    for (size_t end; find_line(end);) {
        const bool is_last = end >= at_ + 2 && in_[end - 1] == '\n';
        if (!is_last) {
            scanned_ = end + 2;
            continue;
        }
        const std::string_view head = std::string_view(in_).substr(at_, end - at_);
        take(end + 2 - at_);
        return parse_head(head);
    }
    // The shortest lines take four octets for one that counts.
    if (in_.size() - at_ > limits_->target + 4 * limits_->headers + 64) return too_many_headers();
    return problem_.empty() ? Found::nothing : Found::error;
}

// A head without its empty line.
HttpParser::Found HttpParser::parse_head(std::string_view head) {
    request_ = {};
    hosts_ = lengths_ = encodings_ = 0;
    header_octets_ = left_ = 0;
    is_chunked_ = expects_ = says_close_ = says_keep_ = upgrades_ = false;
    size_t end = head.find("\r\n");
    if (!parse_request_line(head.substr(0, end))) return problem_.empty() ? invalid() : Found::error;
    for (size_t start = end + 2; start < head.size(); start = end + 2) {
        end = head.find("\r\n", start);
        if (parse_header(head.substr(start, end - start)) == Found::error) return Found::error;
    }
    return check_head();
}

bool HttpParser::parse_request_line(std::string_view line) {
    const size_t first = line.find(' '), last = line.rfind(' ');
    if (first == std::string_view::npos || first == last) return false;
    const std::string_view method = line.substr(0, first), version = line.substr(last + 1);
    const std::string_view target = line.substr(first + 1, last - first - 1);
    const bool is_known = std::find(METHODS.begin(), METHODS.end(), method) != METHODS.end();
    if (!is_known || method == "CONNECT" || (version != "HTTP/1.1" && version != "HTTP/1.0")) return false;
    if (target.empty() || std::any_of(target.begin(), target.end(), [](char c) { return !is_text(c) || c == ' ' || c == '\t'; }))
        return false;
    if (target.size() > limits_->target) {
        fail("request target: at most " + std::to_string(limits_->target) + " octets");
        return false;
    }
    request_.method = method;
    request_.target = target;
    request_.is_old = version == "HTTP/1.0";
    return true;
}

HttpParser::Found HttpParser::parse_header(std::string_view line) {
    const size_t colon = line.find(':');
    if (colon == 0 || colon == std::string_view::npos) return invalid();
    const std::string_view name = line.substr(0, colon), value = trimmed(line.substr(colon + 1));
    header_octets_ += name.size() + value.size();
    if (header_octets_ > limits_->headers)
        return too_many_headers();
    if (!std::all_of(name.begin(), name.end(), is_token) || !std::all_of(value.begin(), value.end(), is_text))
        return invalid();
    return state_ == State::trailer ? Found::nothing : note_header(lowered(name), value);
}

HttpParser::Found HttpParser::note_header(const std::string& name, std::string_view value) {
    if (std::find(kept_->begin(), kept_->end(), name) != kept_->end()) {
        const auto known = std::find_if(request_.kept.begin(), request_.kept.end(), [&](auto& one) { return one.first == name; });
        if (known == request_.kept.end()) request_.kept.emplace_back(name, value);
        else known->second.append(", ").append(value);
    }
    if (name == "host") ++hosts_;
    else if (name == "content-length") return note_length(value);
    else if (name == "connection") note_connection(value);
    else if (name == "upgrade") upgrades_ = true;
    else if (name == "expect") expects_ = lowered(value) == "100-continue";
    else if (name == "transfer-encoding") {
        ++encodings_;
        is_chunked_ = lowered(value) == "chunked";
    } else if (name == "x-request-id") {
        if (request_.has_request_id) request_.request_id += ", ";
        request_.request_id += value;
        request_.has_request_id = true;
    }
    return Found::nothing;
}

HttpParser::Found HttpParser::note_length(std::string_view value) {
    ++lengths_;
    if (value.size() > LENGTH_DIGITS_MAX) return too_long();
    if (value.empty() || !std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; }))
        return invalid();
    left_ = 0;
    for (const char digit : value) {
        left_ = 10 * left_ + static_cast<size_t>(digit - '0');
        if (left_ > limits_->body) return too_long();
    }
    return Found::nothing;
}

void HttpParser::note_connection(std::string_view value) {
    for (size_t start = 0; start <= value.size();) {
        const size_t end = std::min(value.find(',', start), value.size());
        const std::string option = lowered(trimmed(value.substr(start, end - start)));
        says_close_ |= option == "close";
        says_keep_ |= option == "keep-alive";
        start = end + 1;
    }
}

// What lines say together: here two readers could differ about where the request ends.
HttpParser::Found HttpParser::check_head() {
    if (lengths_ > 1 || encodings_ > 1 || (lengths_ && encodings_) || (encodings_ && (request_.is_old || !is_chunked_)))
        return invalid();
    if (hosts_ != 1 && !request_.is_old) return fail("header Host: exactly one is needed");
    if (hosts_ > 1) return invalid();
    // What follows an upgrade is another protocol.
    request_.keeps = !says_close_ && !upgrades_ && (!request_.is_old || says_keep_);
    wants_continue_ = expects_ && !request_.is_old && (left_ || is_chunked_);
    if (is_chunked_) return state_ = State::chunk_size, Found::nothing;
    if (left_) return state_ = State::body, Found::nothing;
    return done();
}

HttpParser::Found HttpParser::read_body() {
    if (in_.size() - at_ < left_) return Found::nothing;
    request_.body.assign(in_, at_, left_);
    take(left_);
    return done();
}

HttpParser::Found HttpParser::read_chunk_size() {
    size_t end = 0;
    if (at_ < in_.size() && hex(in_[at_]) < 0) return invalid();
    if (!find_line(end)) return problem_.empty() ? Found::nothing : Found::error;
    const std::string_view line = std::string_view(in_).substr(at_, end - at_);
    size_t digits = 0, size = 0;
    for (; digits < line.size() && hex(line[digits]) >= 0; ++digits) {
        if (digits >= CHUNK_DIGITS_MAX) return invalid();
        size = 16 * size + static_cast<size_t>(hex(line[digits]));
    }
    const std::string_view rest = trimmed(line.substr(digits));
    if (!digits || (!rest.empty() && rest.front() != ';') || !std::all_of(rest.begin(), rest.end(), is_text)) return invalid();
    if (size > limits_->body - request_.body.size()) return too_long();
    take(end + 2 - at_);
    left_ = size;
    state_ = size ? State::chunk_data : State::trailer;
    return Found::nothing;
}

HttpParser::Found HttpParser::read_chunk_data() {
    const size_t count = std::min(left_, in_.size() - at_);
    request_.body.append(in_, at_, count);
    take(count);
    left_ -= count;
    if (!left_) state_ = State::chunk_end;
    return Found::nothing;
}

HttpParser::Found HttpParser::read_chunk_end() {
    if (in_.size() - at_ < 2) return Found::nothing;
    if (in_[at_] != '\r' || in_[at_ + 1] != '\n') return invalid();
    take(2);
    state_ = State::chunk_size;
    return Found::nothing;
}

HttpParser::Found HttpParser::read_trailer() {
    size_t end = 0;
    if (!find_line(end)) return problem_.empty() ? Found::nothing : Found::error;
    const std::string line = in_.substr(at_, end - at_);
    if (!line.empty() && parse_header(line) == Found::error) return Found::error;
    take(end + 2 - at_);
    return line.empty() ? done() : Found::nothing;
}

HttpParser::Found HttpParser::done() {
    state_ = State::head;
    message_ = 0;
    return Found::request;
}

}  // namespace front
