// Requests as they come, answers as they go.
#include <openssl/err.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "../kernels/container.inc"
#include "connection.hpp"

namespace front {

namespace {

constexpr int READS = 64;  // of one connection before others have their turn
constexpr size_t OUT_KEPT_MAX = 16384;

const char* phrase_of(int status) {
    switch (status) {
        case 200: return "OK";
        case 204: return "No Content";
        case 400: return "Bad Request";
        case 401: return "Unauthorized";
        case 404: return "Not Found";
        case 503: return "Service Unavailable";
        default: return "Answer";
    }
}

// RFC 9110 clause 5.6.7, whatever the locale.
std::string http_date(time_t now) {
    static constexpr const char* DAYS[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static constexpr const char* MONTHS[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    tm parts;
    gmtime_r(&now, &parts);
    char text[64];
    std::snprintf(text, sizeof text, "%s, %02d %s %04d %02d:%02d:%02d GMT", DAYS[parts.tm_wday], parts.tm_mday,
                  MONTHS[parts.tm_mon], parts.tm_year + 1900, parts.tm_hour, parts.tm_min, parts.tm_sec);
    return text;
}

void append(Secret& out, std::string_view text) { out.insert(out.end(), text.begin(), text.end()); }

}  // namespace

void Server::read(Connection& one) {
    for (int i = 0; i < READS; ++i) {
        ERR_clear_error();
        const int count = SSL_read(one.ssl, in_.data(), static_cast<int>(in_.size()));
        if (count <= 0) {
            const int error = SSL_get_error(one.ssl, count);
            // Also a client that ends its half in good order is gone: nobody says so and then waits for keys.
            if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) one.is_broken = true;
            if (one.key_updates > Connection::KEY_UPDATES_MAX) one.is_broken = true;
            return;
        }
        if (!one.is_closing) {
            one.parser.feed(in_.data(), static_cast<size_t>(count));
            parse(one);
        }
        if (one.is_broken || one.state != Connection::State::open || !SSL_has_pending(one.ssl)) return;
    }
    again_.push_back(one.token);
}

void Server::parse(Connection& one) {
    while (!one.is_closing) {
        HttpRequest request;
        const HttpParser::Found found = one.parser.next(request);
        if (found == HttpParser::Found::nothing) break;
        one.is_receiving = false;
        one.key_updates = 0;
        std::string problem;
        if (found == HttpParser::Found::error) {
            refuse(one, one.parser.problem());
        } else if (is_too_many(one, request, problem)) {
            refuse(one, std::move(problem));
        } else {
            one.is_closing = !request.keeps;
            one.waiting_octets += request.octets();
            one.turns.push_back({std::move(request), {}});
        }
    }
    if (one.parser.is_receiving() && !one.is_receiving) one.deadline_s = now_s_ + settings_.request_s;
    one.is_receiving = one.parser.is_receiving();
    // Behind other requests there is nothing to say yet; the client sends its body anyway, a little later.
    if (one.parser.wants_continue() && !one.is_closing && !one.is_asking && one.turns.empty()) {
        const std::string_view text = "HTTP/1.1 100 Continue\r\n\r\n";
        send(one, reinterpret_cast<const uint8_t*>(text.data()), text.size());
    }
    dispatch(one);
}

bool Server::is_too_many(const Connection& one, const HttpRequest& request, std::string& problem) const {
    if (one.turns.size() + (one.is_asking ? 1 : 0) >= settings_.pipelined)
        problem = "pipelining: at most " + std::to_string(settings_.pipelined) + " requests may wait";
    else if (one.waiting_octets && one.waiting_octets + request.octets() > settings_.http.message)
        problem = "pipelining: at most " + std::to_string(settings_.http.message) + " octets of requests may wait";
    return !problem.empty();
}

// Nothing after it on this connection can be understood.
void Server::refuse(Connection& one, std::string problem) {
    one.is_closing = true;
    one.turns.push_back({{}, std::move(problem)});
}

void Server::dispatch(Connection& one) {
    while (!one.is_asking && !one.is_broken && one.out_at == one.out.size() && !one.turns.empty()) {
        Turn turn = std::move(one.turns.front());
        one.turns.pop_front();
        one.waiting_octets -= turn.request.octets();
        if (turn.problem.empty()) return ask(one, std::move(turn.request));
        one.is_head = one.is_old = false;
        // No text of ours needs an escape in JSON.
        const std::string body = "{\"message\":\"" + turn.problem + "\"}";
        answer(one, 400, {}, reinterpret_cast<const uint8_t*>(body.data()), body.size());
    }
}

void Server::ask(Connection& one, HttpRequest request) {
    one.is_asking = true;
    one.is_head = request.method == "HEAD";
    one.is_old = request.is_old && request.keeps;
    post(Event{.kind = Event::Kind::requests, .tokens = {one.token}, .der = {}, .client = one.client, .request = std::move(request)});
}

void Server::execute(Command& command) {
    if (command.kind == Command::Kind::keys) return answer_keys(command);
    if (command.kind == Command::Kind::finish_all) {
        for (const auto& place : connections_)
            if (place) command.tokens.push_back(place->token);
        command.kind = Command::Kind::finish;
    }
    for (const Token token : command.tokens) {
        Connection* one = find(token);
        if (!one) continue;
        try {
            switch (command.kind) {
                case Command::Kind::admit: admit(*one, command.client); break;
                case Command::Kind::finish: finish(*one); break;
                case Command::Kind::cut: one->is_broken = true; break;
                default:
                    if (!one->is_asking) break;
                    one->is_closing |= command.closes;
                    answer(*one, command.status, command.head, command.body.data(), command.body.size());
                    after_answer(*one);
            }
        } catch (const std::bad_alloc&) {
            one->is_broken = true;
        }
        if (one->is_broken) close(*one);
    }
}

// The same request of many clients, each with keys of its own.
void Server::answer_keys(Command& command) {
    const size_t id_octets = 16 * command.number, key_octets = command.number * command.key_octets;
    Secret body(container_octets(command.number, command.key_octets));
    for (size_t i = 0; i < command.tokens.size(); ++i) {
        Connection* one = find(command.tokens[i]);
        if (!one || !one->is_asking) continue;
        write_container(command.ids.data() + i * id_octets, command.body.data() + i * key_octets, command.number,
                        command.key_octets, body.data());
        try {
            answer(*one, 200, {}, body.data(), body.size());
            after_answer(*one);
        } catch (const std::bad_alloc&) {
            one->is_broken = true;
        }
        if (one->is_broken) close(*one);
    }
}

// One whole answer; further turns of the connection are not begun here.
void Server::answer(Connection& one, int status, const std::string& head, const uint8_t* body, size_t count) {
    one.is_asking = false;
    if (date_.empty() || now_s_ - dated_s_ >= 0.5) {
        dated_s_ = now_s_;
        date_ = http_date(time(nullptr));
    }
    const bool has_type = head.find("Content-Type:") != std::string::npos;
    out_.clear();
    append(out_, "HTTP/1.1 ");
    append(out_, std::to_string(status));
    append(out_, " ");
    append(out_, phrase_of(status));
    append(out_, "\r\nDate: ");
    append(out_, date_);
    if (!has_type && status != 204) append(out_, "\r\nContent-Type: application/json");
    append(out_, "\r\nCache-Control: no-store");
    if (status != 204) {
        append(out_, "\r\nContent-Length: ");
        append(out_, std::to_string(count));
    }
    append(out_, "\r\n");
    append(out_, head);
    if (one.is_closing && one.turns.empty()) append(out_, "Connection: close\r\n");
    else if (one.is_old) append(out_, "Connection: keep-alive\r\n");
    append(out_, "\r\n");
    if (!one.is_head) out_.insert(out_.end(), body, body + count);
    send(one, out_.data(), out_.size());
    OPENSSL_cleanse(out_.data(), out_.size());
    if (out_.capacity() > OUT_KEPT_MAX) Secret().swap(out_);
    if (one.out_at == one.out.size() && one.turns.empty()) {
        if (one.is_closing) return linger(one);
        if (!one.parser.is_receiving()) one.deadline_s = now_s_ + settings_.idle_s;
    }
}

void Server::after_answer(Connection& one) {
    if (one.state == Connection::State::open) dispatch(one);
}

void Server::send(Connection& one, const uint8_t* octets, size_t count) {
    if (one.out_at == one.out.size() && write_some(one, octets, count)) return;
    if (one.is_broken) return;
    if (one.out_at == one.out.size()) {
        Secret().swap(one.out);
        one.out_at = 0;
        one.reading_until_s = now_s_ + settings_.reading_s;
    }
    one.out.insert(one.out.end(), octets, octets + count);
    watch(one, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
}

// True: the network has all of it.
bool Server::write_some(Connection& one, const uint8_t*& octets, size_t& count) {
    while (count) {
        ERR_clear_error();
        size_t written = 0;
        const int result = SSL_write_ex(one.ssl, octets, count, &written);
        if (result != 1) {
            const int error = SSL_get_error(one.ssl, result);
            if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) one.is_broken = true;
            return false;
        }
        octets += written;
        count -= written;
    }
    return true;
}

// The client takes again what it was sent.
void Server::flush(Connection& one) {
    const uint8_t* octets = one.out.data() + one.out_at;
    size_t count = one.out.size() - one.out_at;
    const bool is_all = write_some(one, octets, count);
    if (one.is_broken) return;
    const size_t at = one.out.size() - count;
    OPENSSL_cleanse(one.out.data() + one.out_at, at - one.out_at);
    one.out_at = at;
    if (!is_all) return;
    Secret().swap(one.out);
    one.out_at = 0;
    watch(one, EPOLLIN | EPOLLRDHUP);
    if (one.is_asking) return;
    if (!one.turns.empty()) return dispatch(one);
    if (one.is_closing) return linger(one);
    if (!one.parser.is_receiving()) one.deadline_s = now_s_ + settings_.idle_s;
}

}  // namespace front
