// Round trips: a key from one key manager, the same key by its ID from another, over and over on many pairs of
// connections. The two are compared.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <vector>

#include "client.hpp"

namespace load {

class RoundTrips {
  public:
    // `get`: the whole request at the initiator's key manager; `collect`: the path at the target's, up to the key ID.
    RoundTrips(const Place& initiator, const Place& target, std::string get, std::string collect, int connections, double seconds)
        : get_(std::move(get)), collect_(std::move(collect)), host_(target.host), seconds_(seconds), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
        const Connector to_initiator(initiator), to_target(target);
        for (uint64_t i = 0; i < static_cast<uint64_t>(connections); ++i) {
            pairs_.push_back({to_initiator.connect(), to_target.connect(), {}, {}});
            add(2 * i, *pairs_.back().initiator);
            add(2 * i + 1, *pairs_.back().target);
        }
    }
    ~RoundTrips() { ::close(epoll_); }
    RoundTrips(const RoundTrips&) = delete;
    RoundTrips& operator=(const RoundTrips&) = delete;

    // How many were done in how many seconds. Throws std::runtime_error where one fails.
    std::pair<uint64_t, double> run() {
        const double began_s = monotonic_s();
        for (Pair& pair : pairs_) check(pair.initiator->ask(get_, began_s), "the initiator's connection is gone");
        epoll_event events[EVENTS];
        double now_s = began_s;
        for (; now_s < began_s + seconds_; now_s = monotonic_s()) {
            const int count = epoll_wait(epoll_, events, EVENTS, 100);
            for (int i = 0; i < count; ++i) advance(pairs_[events[i].data.u64 / 2], events[i].data.u64 % 2, now_s);
        }
        return {done_, now_s - began_s};
    }

  private:
    struct Pair {
        std::unique_ptr<Client> initiator, target;
        std::string id, key;
    };

    void add(uint64_t who, const Client& client) {
        epoll_event event{.events = EPOLLIN, .data = {.u64 = who}};
        epoll_ctl(epoll_, EPOLL_CTL_ADD, client.fd(), &event);
    }

    void advance(Pair& pair, bool is_target, double now_s) {
        std::string_view answer;
        check((is_target ? pair.target : pair.initiator)->read(answer), "a connection is gone");
        if (answer.empty()) return;
        check(answer.substr(9, 3) == "200", "answered " + std::string(answer.substr(9, 3)));
        const std::string_view id = member(answer, "\"key_ID\":\""), key = member(answer, "\"key\":\"");
        if (!is_target) {
            pair.id = id;
            pair.key = key;
            const std::string request = "GET " + collect_ + pair.id + " HTTP/1.1\r\nHost: " + host_ + "\r\n\r\n";
            return check(pair.target->ask(request, now_s), "the target's connection is gone");
        }
        check(id == pair.id && key == pair.key, "key " + pair.id + " differs between the two ends");
        ++done_;
        check(pair.initiator->ask(get_, now_s), "the initiator's connection is gone");
    }

    static std::string_view member(std::string_view answer, std::string_view name) {
        const size_t place = answer.find(name);
        const size_t start = place + name.size(), end = place == std::string_view::npos ? place : answer.find('"', start);
        check(end != std::string_view::npos && end > start, "an answer without a key");
        return answer.substr(start, end - start);
    }

    const std::string get_, collect_, host_;
    const double seconds_;
    const int epoll_;
    std::vector<Pair> pairs_;
    uint64_t done_ = 0;
};

}  // namespace load
