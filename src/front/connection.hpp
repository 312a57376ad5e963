// What the server keeps of one client.
#pragma once

#include <unistd.h>

#include "server.hpp"

namespace front {

// A request, or why there is none, that waits for its turn.
struct Server::Turn {
    HttpRequest request;
    std::string problem;  // empty: a request
};

struct Server::Connection {
    static constexpr int KEY_UPDATES_MAX = 8;

    enum class State {
        shaking,    // TLS is being agreed
        knocking,   // the owner is asked whether this certificate may come in
        open,
        lingering,  // all is said: what the client still sends is thrown away until it closes, too
    };

    Connection(int handle, SSL* tls, Token name, const Settings& settings)
        : fd(handle), ssl(tls), token(name), parser(settings.http, settings.kept_headers) {
        SSL_set_msg_callback(ssl, note_message);
        SSL_set_msg_callback_arg(ssl, this);
    }
    ~Connection() {
        SSL_free(ssl);
        ::close(fd);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // A client may ask for new keys of the connection (RFC 8446 clause 4.6.3), and OpenSSL obeys as long as it asks, inside
    // one read: who does nothing else would keep the thread there. After this much of it no more is read.
    static void note_message(int is_ours, int, int kind, const void* octets, size_t count, SSL* ssl, void* connection) {
        if (is_ours || kind != SSL3_RT_HANDSHAKE || !count || *static_cast<const uint8_t*>(octets) != SSL3_MT_KEY_UPDATE) return;
        if (++static_cast<Connection*>(connection)->key_updates > KEY_UPDATES_MAX) SSL_set_shutdown(ssl, SSL_RECEIVED_SHUTDOWN);
    }

    const int fd;
    SSL* const ssl;
    const Token token;
    State state = State::shaking;
    uint32_t client = 0;
    uint32_t watched = 0;
    HttpParser parser;
    std::deque<Turn> turns;
    size_t waiting_octets = 0;  // of the requests in `turns`
    bool is_asking = false;     // a request of it is with the owner
    bool is_head = false, is_old = false;  // of that request
    bool is_receiving = false;  // the request has begun that `deadline_s` is for
    bool is_closing = false;    // no more requests; it ends with the answers to those there are
    bool is_broken = false;     // to be closed as soon as nobody works with it
    int key_updates = 0;        // since the last whole request
    Secret out;                 // what the network has not taken yet
    size_t out_at = 0;
    double deadline_s = 0;      // for the client to ask, or to shake hands
    double reading_until_s = 0;  // for the client to take `out`
};

}  // namespace front
