// The loop: sockets, handshakes, time-outs, and the queues to and from the owner. `answers.cpp` has requests and answers.
#include "server.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <system_error>

#include "connection.hpp"

namespace front {

namespace {

constexpr int EVENTS = 256, ACCEPTS = 64;
constexpr double GATHER_S = 0.002;
constexpr double PAUSE_S = 0.1;  // before another try to accept where there are no more file handles
constexpr uint64_t WAKE = ~uint64_t{0}, LISTENER = uint64_t{1} << 63;  // no token: generations stay below 2^31

double monotonic_s() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void signal_to(int fd) {
    const uint64_t one = 1;
    // Only full counters refuse, and those are ready as it is.
    [[maybe_unused]] const ssize_t written = ::write(fd, &one, sizeof one);
}

int checked(int result, const char* what) {
    if (result < 0) throw std::system_error(errno, std::generic_category(), what);
    return result;
}

uint32_t place_of(Token token) { return static_cast<uint32_t>(token); }
uint32_t generation_of(Token token) { return static_cast<uint32_t>(token >> 32); }

}  // namespace

Server::Server(Settings settings) : settings_(std::move(settings)), in_(16384 + 256) {
    ready_ = checked(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
    wake_ = checked(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
    epoll_ = checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    epoll_event wake{.events = EPOLLIN, .data = {.u64 = WAKE}};
    checked(epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &wake), "epoll_ctl");
}

Server::~Server() { stop(); }

void Server::use(std::shared_ptr<TlsContext> context) {
    const std::lock_guard lock(guard_);
    context_ = std::move(context);
}

void Server::start(const std::vector<int>& listeners) {
    listeners_ = listeners;
    is_listening_ = true;
    // Signals are the owner's: its main thread takes them.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_.native_handle(), "front");
}

void Server::stop_listening() {
    is_listening_ = false;
    signal_to(wake_);
}

void Server::stop() {
    is_stopping_ = true;
    signal_to(wake_);
    if (thread_.joinable()) thread_.join();
    for (int* fd : {&epoll_, &wake_, &ready_}) {
        if (*fd >= 0) ::close(*fd);
        *fd = -1;
    }
}

std::vector<Event> Server::take() {
    uint64_t count;
    [[maybe_unused]] const ssize_t octets = ::read(ready_, &count, sizeof count);
    const std::lock_guard lock(guard_);
    same_.clear();
    return std::exchange(events_, {});
}

void Server::give(Command command) {
    bool is_first;
    {
        const std::lock_guard lock(guard_);
        is_first = commands_.empty();
        given_ += 1;
        commands_.push_back(std::move(command));
    }
    if (is_first) signal_to(wake_);
}

std::vector<Token> Server::living(const std::vector<Token>& tokens) {
    std::vector<Token> found;
    const std::lock_guard lock(guard_);
    for (const Token token : tokens) {
        const uint32_t place = place_of(token);
        if (place < generations_.size() && generations_[place] == generation_of(token)) found.push_back(token);
    }
    return found;
}

// Under the guard: whoever had this place has it no more.
uint32_t Server::next_generation(uint32_t place) { return generations_[place] = (generations_[place] + 1) & 0x7FFFFFFF; }

void Server::post(Event event) { fresh_.push_back(std::move(event)); }

Server::Connection* Server::find(Token token) {
    const uint32_t place = place_of(token);
    Connection* one = place < connections_.size() ? connections_[place].get() : nullptr;
    return one && one->token == token ? one : nullptr;
}

void Server::run() {
    epoll_event events[EVENTS];
    while (!is_stopping_) {
        now_s_ = monotonic_s();
        const int count = epoll_wait(epoll_, events, EVENTS, fresh_.empty() ? wait(now_s_) : 0);
        now_s_ = monotonic_s();
        if (fresh_.empty()) fresh_s_ = now_s_;
        std::vector<Command> commands;
        for (int i = 0; i < std::max(count, 0); ++i) {
            const uint64_t who = events[i].data.u64;
            if (who == WAKE) {
                uint64_t rings;
                [[maybe_unused]] const ssize_t octets = ::read(wake_, &rings, sizeof rings);
                const std::lock_guard lock(guard_);
                commands.swap(commands_);
            } else if (who & LISTENER) {
                accept_all(static_cast<int>(who & ~LISTENER));
            } else if (Connection* one = find(who)) {
                handle(*one, events[i].events);
            }
        }
        for (std::deque<Token> again = std::exchange(again_, {}); !again.empty(); again.pop_front())
            if (Connection* one = find(again.front())) handle(*one, EPOLLIN);
        for (Command& command : commands) {
            execute(command);
            handed_ += 1;
        }
        sweep(now_s_);
        // While more is there to be read the owner is not woken: what it gets at once it can answer at once.
        if (fresh_.empty() || (count > 0 && now_s_ - fresh_s_ < GATHER_S)) continue;
        {
            const std::lock_guard lock(guard_);
            for (Event& event : fresh_) {
                if (event.kind == Event::Kind::requests && !event.request.has_request_id && event.request.kept.empty()) {
                    std::string key = std::to_string(event.client);
                    for (const std::string* part : {&event.request.method, &event.request.target, &event.request.body})
                        key.append(1, '\n').append(*part);
                    const auto [known, is_new] = same_.emplace(std::move(key), events_.size());
                    if (!is_new) {
                        events_[known->second].tokens.push_back(event.tokens[0]);
                        continue;
                    }
                }
                events_.push_back(std::move(event));
            }
        }
        fresh_.clear();
        signal_to(ready_);
    }
    close_all();
}

// Milliseconds until something is due; also lets the listeners in or out.
int Server::wait(double now_s) {
    const bool polls = is_listening_ && now_s >= paused_until_s_;
    if (polls != is_polling_listeners_) {
        for (const int listener : listeners_) {
            epoll_event event{.events = EPOLLIN, .data = {.u64 = LISTENER | static_cast<uint64_t>(listener)}};
            epoll_ctl(epoll_, polls ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener, &event);
        }
        is_polling_listeners_ = polls;
    }
    if (!is_listening_ && !listeners_.empty()) {
        for (const int listener : listeners_) ::close(listener);
        listeners_.clear();
    }
    if (!again_.empty()) return 0;
    const double pause_s = is_listening_ && !polls ? PAUSE_S : 1.0;
    return std::max(1, static_cast<int>(1000 * std::min(pause_s, period_s())));
}

void Server::accept_all(int listener) {
    for (int i = 0; i < ACCEPTS; ++i) {
        const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                paused_until_s_ = now_s_ + PAUSE_S;
                return drop_oldest_handshake();
            }
            if (errno == ECONNABORTED || errno == EINTR) continue;
            return;
        }
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (shaking_count_ >= settings_.handshakes) drop_oldest_handshake();
        SSL* ssl;
        Token token;
        {
            const std::lock_guard lock(guard_);
            // The owner's context is never held here: the last one to let go of it needs the interpreter.
            ssl = context_ ? context_->connection() : nullptr;
            if (free_.empty()) {
                free_.push_back(static_cast<uint32_t>(generations_.size()));
                generations_.push_back(0);
                connections_.emplace_back();
            }
            token = uint64_t{next_generation(free_.back())} << 32 | free_.back();
        }
        epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.u64 = token}};
        if (!ssl || SSL_set_fd(ssl, fd) != 1 || epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event)) {
            SSL_free(ssl);
            ::close(fd);
            const std::lock_guard lock(guard_);
            next_generation(free_.back());
            continue;
        }
        SSL_set_accept_state(ssl);
        connections_[free_.back()] = std::make_unique<Connection>(fd, ssl, token, settings_);
        free_.pop_back();
        Connection& one = *connections_[place_of(token)];
        one.watched = event.events;
        one.deadline_s = now_s_ + settings_.handshake_s;
        shaking_.push_back(token);
        ++shaking_count_;
    }
}

// Whoever holds handshakes open must not keep others out.
void Server::drop_oldest_handshake() {
    for (; !shaking_.empty(); shaking_.pop_front()) {
        Connection* oldest = find(shaking_.front());
        if (oldest && oldest->state == Connection::State::shaking) return close(*oldest);
    }
}

void Server::handle(Connection& one, uint32_t events) {
    try {
        if (one.state == Connection::State::shaking) shake_hands(one);
        else if (one.state == Connection::State::lingering) discard(one);
        else if (one.state == Connection::State::open) {
            if (one.out_at < one.out.size()) flush(one);
            if (!one.is_broken && one.state == Connection::State::open && events & ~EPOLLOUT) read(one);
        } else if (events & (EPOLLHUP | EPOLLERR)) {
            one.is_broken = true;
        }
    } catch (const std::bad_alloc&) {
        one.is_broken = true;
    }
    if (one.is_broken) close(one);
}

void Server::shake_hands(Connection& one) {
    ERR_clear_error();
    const int result = SSL_do_handshake(one.ssl);
    if (result != 1) {
        const int error = SSL_get_error(one.ssl, result);
        if (error == SSL_ERROR_WANT_READ) watch(one, EPOLLIN | EPOLLRDHUP);
        else if (error == SSL_ERROR_WANT_WRITE) watch(one, EPOLLOUT | EPOLLRDHUP);
        else one.is_broken = true;
        return;
    }
    one.state = Connection::State::knocking;
    --shaking_count_;
    // Nothing is read from a stranger.
    watch(one, 0);
    Event event{.kind = Event::Kind::peer, .tokens = {one.token}, .der = {}, .client = 0, .request = {}};
    if (X509* certificate = SSL_get1_peer_certificate(one.ssl)) {
        unsigned char* der = nullptr;
        const int length = i2d_X509(certificate, &der);
        if (length > 0) event.der.assign(reinterpret_cast<char*>(der), static_cast<size_t>(length));
        OPENSSL_free(der);
        X509_free(certificate);
    }
    post(std::move(event));
}

void Server::admit(Connection& one, uint32_t client) {
    if (one.state != Connection::State::knocking) return;
    one.state = Connection::State::open;
    one.client = client;
    one.deadline_s = now_s_ + settings_.request_s;
    watch(one, EPOLLIN | EPOLLRDHUP);
    // What came together with the end of the handshake is inside TLS already.
    again_.push_back(one.token);
}

void Server::watch(Connection& one, uint32_t events) {
    if (one.watched == events) return;
    epoll_event event{.events = events, .data = {.u64 = one.token}};
    if (epoll_ctl(epoll_, EPOLL_CTL_MOD, one.fd, &event)) one.is_broken = true;
    one.watched = events;
}

double Server::period_s() const {
    return std::min({1.0, settings_.handshake_s / 4, settings_.request_s / 4, settings_.idle_s / 4, settings_.reading_s / 4});
}

void Server::sweep(double now_s) {
    if (now_s - swept_s_ < period_s()) return;
    swept_s_ = now_s;
    for (; !shaking_.empty(); shaking_.pop_front()) {
        const Connection* oldest = find(shaking_.front());
        if (oldest && oldest->state == Connection::State::shaking) break;
    }
    for (const auto& place : connections_) {
        if (!place) continue;
        Connection& one = *place;
        const bool is_sending = one.out_at < one.out.size();
        const bool is_idle = !one.is_asking && !is_sending && one.turns.empty();
        if ((is_sending && now_s > one.reading_until_s) || (is_idle && now_s > one.deadline_s)) close(one);
    }
}

// Say that nothing more comes, and wait for the client to do so, too: a socket that is closed before all was read takes
// back what the client has not read of the last answer.
void Server::linger(Connection& one) {
    ERR_clear_error();
    SSL_shutdown(one.ssl);
    ::shutdown(one.fd, SHUT_WR);
    one.state = Connection::State::lingering;
    one.deadline_s = now_s_ + settings_.handshake_s;
    watch(one, EPOLLIN | EPOLLRDHUP);
}

void Server::discard(Connection& one) {
    for (int i = 0; i < 16; ++i) {
        const ssize_t count = ::recv(one.fd, in_.data(), in_.size(), 0);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (count <= 0) {
            one.is_broken = true;
            return;
        }
    }
}

// All that waits is answered, then it ends.
void Server::finish(Connection& one) {
    if (one.state == Connection::State::lingering) return;
    one.is_closing = true;
    if (one.state != Connection::State::open || (!one.is_asking && one.turns.empty() && one.out_at == one.out.size()))
        one.is_broken = true;
}

void Server::close(Connection& one) {
    const uint32_t place = place_of(one.token);
    if (one.state == Connection::State::shaking) --shaking_count_;
    else post(Event{.kind = Event::Kind::gone, .tokens = {one.token}, .der = {}, .client = 0, .request = {}});
    epoll_ctl(epoll_, EPOLL_CTL_DEL, one.fd, nullptr);
    ERR_clear_error();
    connections_[place].reset();
    free_.push_back(place);
    const std::lock_guard lock(guard_);
    next_generation(place);
}

void Server::close_all() {
    for (const auto& place : connections_)
        if (place) close(*place);
    for (const int listener : listeners_) ::close(listener);
    listeners_.clear();
}

}  // namespace front
