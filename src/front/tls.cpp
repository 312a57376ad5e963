#include <openssl/err.h>

#include <stdexcept>

#include "server.hpp"

namespace front {

namespace {

// Only these matter where TLS 1.2 is permitted: every session key is fresh and every record authenticated.
constexpr char TLS12_CIPHERS[] = "ECDHE+AESGCM:ECDHE+CHACHA20";
// Each costs a handshake about a millisecond. OpenSSL would also take finite fields, the largest of which keeps the only
// thread busy for 200 ms, for a stranger who has computed nothing.
constexpr char GROUPS[] = "X25519:P-256:P-384";
constexpr unsigned char HTTP11[] = "\x08http/1.1";

// A client that offers other protocols only goes on without one, as with Python's own TLS.
int choose_protocol(SSL*, const unsigned char** chosen, unsigned char* length, const unsigned char* offered,
                    unsigned offered_length, void*) {
    unsigned char* found = nullptr;
    const int result = SSL_select_next_proto(&found, length, HTTP11, sizeof HTTP11 - 1, offered, offered_length);
    *chosen = found;
    return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

void check(bool is_done, const std::string& what) {
    if (is_done) return;
    const unsigned long code = ERR_get_error();
    const char* reason = ERR_reason_error_string(code);
    ERR_clear_error();
    throw std::runtime_error(what + ": " + (reason ? reason : "OpenSSL refuses it"));
}

}  // namespace

TlsContext::TlsContext(const std::string& certificate, const std::string& private_key, const std::string& authorities, int minimum)
    : context_(SSL_CTX_new(TLS_server_method())) {
    check(context_, "TLS");
    try {
        check(SSL_CTX_set_min_proto_version(context_, minimum) == 1, "TLS version");
        check(SSL_CTX_set_cipher_list(context_, TLS12_CIPHERS) == 1, "TLS ciphers");
        check(SSL_CTX_set1_groups_list(context_, GROUPS) == 1, "TLS groups");
        // A resumed session would not show its certificate again; clients keep their connections instead.
        check(SSL_CTX_set_num_tickets(context_, 0) == 1, "TLS tickets");
        SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_options(context_, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                          SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_SINGLE_ECDH_USE);
        SSL_CTX_set_mode(context_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_read_ahead(context_, 1);
        SSL_CTX_set_alpn_select_cb(context_, choose_protocol, nullptr);
        // A key with a passphrase must fail, not ask for it on the terminal.
        SSL_CTX_set_default_passwd_cb(context_, [](char*, int, int, void*) { return -1; });
        check(SSL_CTX_use_certificate_chain_file(context_, certificate.c_str()) == 1, "certificate " + certificate);
        check(SSL_CTX_use_PrivateKey_file(context_, private_key.c_str(), SSL_FILETYPE_PEM) == 1, "private key " + private_key);
        check(SSL_CTX_check_private_key(context_) == 1, "private key " + private_key);
        check(SSL_CTX_load_verify_locations(context_, authorities.c_str(), nullptr) == 1, "CA certificate " + authorities);
        X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(context_), X509_V_FLAG_TRUSTED_FIRST);
        SSL_CTX_set_verify(context_, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    } catch (...) {
        SSL_CTX_free(context_);
        throw;
    }
}

}  // namespace front
