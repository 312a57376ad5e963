// An HTTPS server on a thread of its own that never takes the interpreter's lock: TLS with certificates on both sides,
// HTTP/1.1, slow and greedy clients. It hands out what was asked, requests that are the same octet by octet and of one
// client as one, and takes answers. Who a certificate is, and what it may have, is decided outside.
#pragma once

#include <openssl/crypto.h>
#include <openssl/ssl.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "http.hpp"

namespace front {

// Octets that are overwritten before the memory goes back.
template <class T>
struct Wiping {
    using value_type = T;
    Wiping() = default;
    template <class U>
    Wiping(const Wiping<U>&) {}
    T* allocate(size_t count) { return std::allocator<T>().allocate(count); }
    void deallocate(T* place, size_t count) {
        OPENSSL_cleanse(place, count * sizeof(T));
        std::allocator<T>().deallocate(place, count);
    }
    bool operator==(const Wiping&) const { return true; }
};
using Secret = std::vector<uint8_t, Wiping<uint8_t>>;

struct Settings {
    HttpLimits http;
    size_t pipelined = 128;
    size_t handshakes = 1024;  // under way; with one more the oldest is dropped
    double handshake_s = 10, request_s = 20, idle_s = 200, reading_s = 20;
    std::vector<std::string> kept_headers;
};

using Token = uint64_t;  // a connection: place (32, low) and how often the place was used before

// What the server has for its owner.
struct Event {
    enum class Kind { peer, requests, gone };
    Kind kind;
    std::vector<Token> tokens;
    std::string der;         // peer: its certificate; empty: none
    uint32_t client = 0;     // requests: as `admit` named it
    HttpRequest request;     // requests: what all the tokens ask
};

// What the owner has for the server.
struct Command {
    enum class Kind { admit, answer, keys, finish, finish_all, cut };
    Kind kind;
    std::vector<Token> tokens;
    uint32_t client = 0;
    int status = 200;
    bool closes = false;      // answer: the connection ends with it
    std::string head;         // answer: further header lines, each with its CR LF
    Secret body;              // answer: as it goes out; keys: the material of all, one after the other
    std::vector<uint8_t> ids;  // keys
    size_t number = 0, key_octets = 0;  // keys: of one answer; of one key
};

class TlsContext {
  public:
    // Throws std::runtime_error with OpenSSL's words.
    TlsContext(const std::string& certificate, const std::string& private_key, const std::string& authorities, int minimum);
    ~TlsContext() { SSL_CTX_free(context_); }
    TlsContext(const TlsContext&) = delete;
    TlsContext& operator=(const TlsContext&) = delete;
    SSL* connection() const { return SSL_new(context_); }

  private:
    SSL_CTX* context_;
};

class Server {
  public:
    explicit Server(Settings settings);
    ~Server();

    // The context of connections from now on.
    void use(std::shared_ptr<TlsContext> context);
    // Takes over listening sockets, and begins. Throws std::system_error.
    void start(const std::vector<int>& listeners);
    void stop_listening();
    void stop();

    int ready_fd() const { return ready_; }
    std::vector<Event> take();
    void give(Command command);
    // Which of these are still connected, as far as is known now.
    std::vector<Token> living(const std::vector<Token>& tokens);
    // All that was given is with the network, or nobody is there to take it.
    bool is_handed() const { return given_.load() == handed_.load(); }

  private:
    struct Connection;
    struct Turn;

    void run();
    int wait(double now_s);
    void accept_all(int listener);
    void drop_oldest_handshake();
    void handle(Connection& one, uint32_t events);
    void shake_hands(Connection& one);
    void read(Connection& one);
    void parse(Connection& one);
    bool is_too_many(const Connection& one, const HttpRequest& request, std::string& problem) const;
    void refuse(Connection& one, std::string problem);
    void dispatch(Connection& one);
    void ask(Connection& one, HttpRequest request);
    void execute(Command& command);
    void admit(Connection& one, uint32_t client);
    void answer_keys(Command& command);
    void answer(Connection& one, int status, const std::string& head, const uint8_t* body, size_t count);
    void send(Connection& one, const uint8_t* octets, size_t count);
    bool write_some(Connection& one, const uint8_t*& octets, size_t& count);
    void flush(Connection& one);
    void after_answer(Connection& one);
    void finish(Connection& one);
    void linger(Connection& one);
    void discard(Connection& one);
    void close(Connection& one);
    void watch(Connection& one, uint32_t events);
    double period_s() const;
    void sweep(double now_s);
    void close_all();
    Connection* find(Token token);
    uint32_t next_generation(uint32_t place);
    void post(Event event);

    const Settings settings_;
    std::thread thread_;
    int epoll_ = -1, ready_ = -1, wake_ = -1;
    std::vector<int> listeners_;
    std::atomic<bool> is_stopping_{false}, is_listening_{false};
    std::atomic<uint64_t> given_{0}, handed_{0};

    std::mutex guard_;  // of all up to the next empty line
    std::vector<Event> events_;
    std::unordered_map<std::string, size_t> same_;  // of events_: requests by who asks what
    std::vector<Command> commands_;
    std::vector<uint32_t> generations_;  // by place; even: nobody is there
    std::shared_ptr<TlsContext> context_;

    // The thread's own.
    std::vector<std::unique_ptr<Connection>> connections_;
    std::vector<uint32_t> free_;
    std::deque<Token> shaking_;
    std::deque<Token> again_;  // have octets inside TLS that no poll will tell of
    std::vector<Event> fresh_;
    size_t shaking_count_ = 0;
    double now_s_ = 0, swept_s_ = 0, paused_until_s_ = 0, fresh_s_ = 0;
    bool is_polling_listeners_ = false;
    std::string date_;
    double dated_s_ = 0;
    std::vector<uint8_t> in_;
    Secret out_;
};

}  // namespace front
