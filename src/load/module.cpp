// Load on an HTTPS server: so many connections that ask again and again, on one core, fast enough that the server is what
// is measured. qtrunk.plan.bench.load says what it means.
#include <fcntl.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace {

constexpr int SUB_BITS = 6, EVENTS = 256, ANSWER_WITHIN_S = 10;

using Found = std::tuple<double, std::map<std::string, uint64_t>, uint64_t, std::map<uint64_t, uint64_t>>;

double monotonic_s() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void check(bool is_done, const std::string& what) {
    if (!is_done) throw std::runtime_error(what);
}

struct Task {
    std::string host;
    int port;
    std::string certificate, private_key, ca_certificate, request;
    int connections;
    double seconds, warm_up_s, rate_hz;
};

class Client {
  public:
    Client(const Task& task, SSL_CTX* context, const addrinfo& address) : fd_(socket(address.ai_family, SOCK_STREAM, 0)) {
        check(fd_ >= 0, "no more sockets");
        const timeval patience{.tv_sec = ANSWER_WITHIN_S, .tv_usec = 0};
        const int on = 1;
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        ssl_ = SSL_new(context);
        const bool is_there = ::connect(fd_, address.ai_addr, address.ai_addrlen) == 0;
        if (!is_there || SSL_set1_host(ssl_, task.host.c_str()) != 1 || SSL_set_fd(ssl_, fd_) != 1 || SSL_connect(ssl_) != 1) {
            ERR_clear_error();
            end();
            throw std::runtime_error(is_there ? "TLS is refused" : "nobody listens");
        }
        fcntl(fd_, F_SETFL, O_NONBLOCK);
    }
    ~Client() { end(); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    int fd() const { return fd_; }
    double asked_s() const { return asked_s_; }

    // False: the connection is gone. Requests are small, and at most one is under way: the socket takes it whole.
    bool ask(const std::string& request, double due_s) {
        asked_s_ = due_s;
        ERR_clear_error();
        return SSL_write(ssl_, request.data(), static_cast<int>(request.size())) > 0;
    }

    // Reads; false: the connection is gone. `status` is set when an answer is whole.
    bool read(std::string& status) {
        char octets[16384];
        do {
            ERR_clear_error();
            const int count = SSL_read(ssl_, octets, sizeof octets);
            if (count <= 0) return SSL_get_error(ssl_, count) == SSL_ERROR_WANT_READ;
            answer_.append(octets, static_cast<size_t>(count));
        } while (SSL_has_pending(ssl_));
        const size_t head = answer_.find("\r\n\r\n"), place = answer_.find("Content-Length: ");
        if (head == std::string::npos) return true;
        if (place > head) return false;
        if (answer_.size() < head + 4 + std::strtoul(answer_.c_str() + place + 16, nullptr, 10)) return true;
        status = answer_.substr(9, 3);
        answer_.clear();
        return true;
    }

  private:
    void end() {
        SSL_free(ssl_);
        ::close(fd_);
    }

    int fd_;
    SSL* ssl_ = nullptr;
    std::string answer_;
    double asked_s_ = 0;
};

class Run {
  public:
    explicit Run(const Task& task) : task_(task), epoll_(epoll_create1(EPOLL_CLOEXEC)) {}
    ~Run() { ::close(epoll_); }

    Found run() {
        connect();
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
    void connect() {
        const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
        SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
        SSL_CTX_set_read_ahead(context.get(), 1);
        SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
        check(SSL_CTX_use_certificate_chain_file(context.get(), task_.certificate.c_str()) == 1, "certificate does not load");
        check(SSL_CTX_use_PrivateKey_file(context.get(), task_.private_key.c_str(), SSL_FILETYPE_PEM) == 1, "private key does not load");
        check(SSL_CTX_load_verify_locations(context.get(), task_.ca_certificate.c_str(), nullptr) == 1, "CA certificate does not load");
        addrinfo wanted{}, *found = nullptr;
        wanted.ai_socktype = SOCK_STREAM;
        check(getaddrinfo(task_.host.c_str(), std::to_string(task_.port).c_str(), &wanted, &found) == 0, "no such host");
        const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
        for (int i = 0; i < task_.connections; ++i) {
            clients_.push_back(first(context.get(), found));
            epoll_event event{.events = EPOLLIN, .data = {.u64 = static_cast<uint64_t>(i)}};
            epoll_ctl(epoll_, EPOLL_CTL_ADD, clients_.back()->fd(), &event);
        }
    }

    // Over the first of the host's addresses where somebody listens.
    std::unique_ptr<Client> first(SSL_CTX* context, const addrinfo* address) {
        while (true) {
            try {
                return std::make_unique<Client>(task_, context, *address);
            } catch (const std::runtime_error&) {
                if (!(address = address->ai_next)) throw;
            }
        }
    }

    void wait(double now_s, double until_s, double began_s) {
        epoll_event events[EVENTS];
        const int patience_ms = std::clamp(static_cast<int>(1000 * (until_s - now_s)), 1, 100);  // never spinning
        const int count_ready = epoll_wait(epoll_, events, EVENTS, patience_ms);
        for (int i = 0; i < count_ready; ++i) {
            const size_t who = events[i].data.u64;
            std::string status;
            if (!clients_[who]) continue;
            if (!clients_[who]->read(status)) {
                lose(who);
            } else if (!status.empty()) {
                now_s = monotonic_s();
                if (now_s >= began_s) {
                    ++answers_[status];
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

Found run(const std::string& host, int port, const std::string& certificate, const std::string& private_key,
          const std::string& ca_certificate, nb::bytes request, int connections, double seconds, double warm_up_s, double rate_hz) {
    const Task task{host, port, certificate, private_key, ca_certificate, {request.c_str(), request.size()},
                    connections, seconds, warm_up_s, rate_hz};
    const nb::gil_scoped_release released;
    return Run(task).run();
}

}  // namespace

NB_MODULE(_load, m) {
    m.def("run", &run, nb::kw_only(), nb::arg("host"), nb::arg("port"), nb::arg("certificate"), nb::arg("private_key"),
          nb::arg("ca_certificate"), nb::arg("request"), nb::arg("connections"), nb::arg("seconds"), nb::arg("warm_up_s"),
          nb::arg("rate_hz"));
}
