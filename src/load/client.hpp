// One TLS connection of a load on an HTTPS server, and what all loads need.
#pragma once

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace load {

constexpr int EVENTS = 256, ANSWER_WITHIN_S = 10;

inline double monotonic_s() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

inline void check(bool is_done, const std::string& what) {
    if (!is_done) throw std::runtime_error(what);
}

// Where the server listens, and who asks.
struct Place {
    std::string host;
    int port;
    std::string certificate, private_key, ca_certificate;
};

class Client {
  public:
    // Throws std::runtime_error where nobody listens, or TLS is refused.
    Client(const std::string& host, SSL_CTX* context, const addrinfo& address)
        : fd_(socket(address.ai_family, SOCK_STREAM, 0)) {
        check(fd_ >= 0, "no more sockets");
        const timeval patience{.tv_sec = ANSWER_WITHIN_S, .tv_usec = 0};
        const int on = 1;
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        ssl_ = SSL_new(context);
        const bool is_there = ::connect(fd_, address.ai_addr, address.ai_addrlen) == 0;
        if (!is_there || SSL_set1_host(ssl_, host.c_str()) != 1 || SSL_set_fd(ssl_, fd_) != 1 || SSL_connect(ssl_) != 1) {
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

    // Reads; false: the connection is gone. `answer` is set when one is whole, head and body, until the next call.
    bool read(std::string_view& answer) {
        if (is_whole_) answer_.clear();
        is_whole_ = false;
        char octets[16384];
        do {
            ERR_clear_error();
            const int count = SSL_read(ssl_, octets, sizeof octets);
            if (count <= 0 && SSL_get_error(ssl_, count) != SSL_ERROR_WANT_READ) return false;
            if (count <= 0) break;
            answer_.append(octets, static_cast<size_t>(count));
        } while (SSL_has_pending(ssl_));
        const size_t head = answer_.find("\r\n\r\n"), place = answer_.find("Content-Length: ");
        if (head == std::string::npos) return true;
        if (place > head) return false;
        if (answer_.size() < head + 4 + std::strtoul(answer_.c_str() + place + 16, nullptr, 10)) return true;
        is_whole_ = true;
        answer = answer_;
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
    bool is_whole_ = false;
    double asked_s_ = 0;
};

// Makes connections to one place. Throws std::runtime_error where that cannot be.
class Connector {
  public:
    explicit Connector(const Place& place) : host_(place.host), context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free) {
        SSL_CTX* context = context_.get();
        SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
        check(SSL_CTX_use_certificate_chain_file(context, place.certificate.c_str()) == 1, "certificate does not load");
        check(SSL_CTX_use_PrivateKey_file(context, place.private_key.c_str(), SSL_FILETYPE_PEM) == 1, "private key does not load");
        check(SSL_CTX_load_verify_locations(context, place.ca_certificate.c_str(), nullptr) == 1, "CA certificate does not load");
        addrinfo wanted{}, *found = nullptr;
        wanted.ai_socktype = SOCK_STREAM;
        check(getaddrinfo(host_.c_str(), std::to_string(place.port).c_str(), &wanted, &found) == 0, "no such host");
        addresses_.reset(found);
    }

    // Over the first of the host's addresses where somebody listens.
    std::unique_ptr<Client> connect() const {
        for (const addrinfo* address = addresses_.get();; address = address->ai_next) {
            try {
                return std::make_unique<Client>(host_, context_.get(), *address);
            } catch (const std::runtime_error&) {
                if (!address->ai_next) throw;
            }
        }
    }

  private:
    const std::string host_;
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
    std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses_{nullptr, freeaddrinfo};
};

}  // namespace load
