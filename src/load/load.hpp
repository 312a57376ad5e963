// Load on an HTTPS server: so many connections that ask again and again, on one core.
#pragma once

#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <map>
#include <tuple>
#include <vector>

#include "client.hpp"

namespace load {

constexpr int SUB_BITS = 6;

// Seconds, answers by status, connections lost, times by bucket.
using Found = std::tuple<double, std::map<std::string, uint64_t>, uint64_t, std::map<uint64_t, uint64_t>>;

struct Task {
    Place place;
    std::string request;
    int connections;
    double seconds, warm_up_s, rate_hz;
};

class Load {
  public:
    explicit Load(const Task& task) : task_(task), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
        const Connector connector(task_.place);
        for (int i = 0; i < task_.connections; ++i) {
            clients_.push_back(connector.connect());
            epoll_event event{.events = EPOLLIN, .data = {.u64 = static_cast<uint64_t>(i)}};
            epoll_ctl(epoll_, EPOLL_CTL_ADD, clients_.back()->fd(), &event);
        }
    }
    ~Load() { ::close(epoll_); }
    Load(const Load&) = delete;
    Load& operator=(const Load&) = delete;

    Found run() {
        double now_s = monotonic_s();
        const double began_s = now_s + task_.warm_up_s, ends_s = began_s + task_.seconds;
        double due_s = now_s;
        for (size_t i = 0; i < clients_.size(); ++i) {
            if (task_.rate_hz > 0) free_.push_back(i);
            else ask(i, now_s);
        }
        for (; now_s < ends_s; now_s = monotonic_s()) {
            for (; task_.rate_hz > 0 && due_s <= now_s; due_s += 1 / task_.rate_hz) {
                due_.push_back(due_s);
                give_next();
            }
            wait(now_s, task_.rate_hz > 0 ? due_s : ends_s, began_s);
        }
        // What was due and never answered counts as well, with the time it has waited.
        for (const double since_s : due_) count(now_s - since_s);
        return {now_s - began_s, answers_, lost_, times_};
    }

  private:
    void wait(double now_s, double until_s, double began_s) {
        epoll_event events[EVENTS];
        const int patience_ms = std::clamp(static_cast<int>(1000 * (until_s - now_s)), 1, 100);  // never spinning
        const int count_ready = epoll_wait(epoll_, events, EVENTS, patience_ms);
        for (int i = 0; i < count_ready; ++i) {
            const size_t who = events[i].data.u64;
            std::string_view answer;
            if (!clients_[who]) continue;
            if (!clients_[who]->read(answer)) {
                lose(who);
            } else if (!answer.empty()) {
                now_s = monotonic_s();
                if (now_s >= began_s) {
                    ++answers_[std::string(answer.substr(9, 3))];
                    count(now_s - clients_[who]->asked_s());
                }
                if (task_.rate_hz > 0) {
                    free_.push_back(who);
                    give_next();
                } else {
                    ask(who, now_s);
                }
            }
        }
    }

    void give_next() {
        if (due_.empty() || free_.empty()) return;
        const size_t who = free_.front();
        const double due_s = due_.front();
        free_.pop_front();
        due_.pop_front();
        ask(who, due_s);
    }

    void ask(size_t who, double due_s) {
        if (!clients_[who]->ask(task_.request, due_s)) lose(who);
    }

    void lose(size_t who) {
        clients_[who].reset();
        ++lost_;
    }

    void count(double seconds) {
        const auto microseconds = static_cast<uint64_t>(std::max(0.0, seconds) * 1e6);
        const int shift = std::max(0, static_cast<int>(std::bit_width(microseconds)) - SUB_BITS - 1);
        ++times_[(static_cast<uint64_t>(shift) << SUB_BITS) + (microseconds >> shift)];
    }

    const Task& task_;
    const int epoll_;
    std::vector<std::unique_ptr<Client>> clients_;
    std::deque<size_t> free_;
    std::deque<double> due_;
    std::map<std::string, uint64_t> answers_;
    std::map<uint64_t, uint64_t> times_;
    uint64_t lost_ = 0;
};

}  // namespace load
