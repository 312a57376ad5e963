// The Python face of the front: qtrunk.api.front is the only module that imports it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <stdexcept>

#include "server.hpp"

namespace nb = nanobind;
using namespace front;

namespace {

using Octets = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::bytes as_bytes(const std::string& text) { return nb::bytes(text.data(), text.size()); }

nb::bytes as_bytes(const std::vector<Token>& tokens) { return nb::bytes(tokens.data(), tokens.size() * sizeof(Token)); }

std::vector<Token> tokens_of(nb::bytes octets) {
    if (octets.size() % sizeof(Token)) throw std::invalid_argument("tokens: 8 octets each");
    std::vector<Token> tokens(octets.size() / sizeof(Token));
    if (!tokens.empty()) std::memcpy(tokens.data(), octets.data(), octets.size());
    return tokens;
}

Command command_of(Command::Kind kind, nb::bytes tokens) {
    Command command{};
    command.kind = kind;
    command.tokens = tokens_of(tokens);
    return command;
}

nb::object event_as_python(const Event& event) {
    const nb::bytes tokens = as_bytes(event.tokens);
    switch (event.kind) {
        case Event::Kind::peer: return nb::make_tuple("peer", tokens, as_bytes(event.der));
        case Event::Kind::gone: return nb::make_tuple("gone", tokens);
        default: break;
    }
    const HttpRequest& request = event.request;
    nb::object request_id = nb::none(), kept = nb::none();
    if (request.has_request_id) request_id = as_bytes(request.request_id);
    if (!request.kept.empty()) {
        nb::dict headers;
        for (const auto& [name, value] : request.kept) headers[nb::str(name.c_str())] = as_bytes(value);
        kept = headers;
    }
    return nb::make_tuple("requests", tokens, event.client, nb::str(request.method.c_str()), as_bytes(request.target),
                          as_bytes(request.body), request_id, kept);
}

nb::list take(Server& server) {
    nb::list found;
    for (const Event& event : server.take()) found.append(event_as_python(event));
    return found;
}

void answer(Server& server, nb::bytes tokens, int status, nb::bytes head, Octets body, bool closes) {
    Command command = command_of(Command::Kind::answer, tokens);
    command.status = status;
    command.head.assign(head.c_str(), head.size());
    command.body.assign(body.data(), body.data() + body.shape(0));
    command.closes = closes;
    server.give(std::move(command));
}

void answer_keys(Server& server, nb::bytes tokens, nb::bytes ids, Octets material, size_t number, size_t key_octets) {
    Command command = command_of(Command::Kind::keys, tokens);
    const size_t keys = command.tokens.size() * number;
    if (!number || !key_octets || key_octets > 65536 || number > 65536 || ids.size() != 16 * keys ||
        material.shape(0) != keys * key_octets)
        throw std::invalid_argument("ids, material: not what so many answers need");
    const auto* octets = static_cast<const uint8_t*>(ids.data());
    command.ids.assign(octets, octets + ids.size());
    command.body.assign(material.data(), material.data() + material.shape(0));
    command.number = number;
    command.key_octets = key_octets;
    server.give(std::move(command));
}

void admit(Server& server, nb::bytes tokens, uint32_t client) {
    Command command = command_of(Command::Kind::admit, tokens);
    command.client = client;
    server.give(std::move(command));
}

Settings settings_of(size_t target, size_t headers, size_t body, size_t message, size_t pipelined, size_t handshakes,
                     double handshake_s, double request_s, double idle_s, double reading_s, std::vector<std::string> kept_headers) {
    Settings settings;
    settings.http = {.target = target, .headers = headers, .body = body, .message = message};
    settings.pipelined = pipelined;
    settings.handshakes = handshakes;
    settings.handshake_s = handshake_s;
    settings.request_s = request_s;
    settings.idle_s = idle_s;
    settings.reading_s = reading_s;
    settings.kept_headers = std::move(kept_headers);
    return settings;
}

}  // namespace

NB_MODULE(_front, m) {
    nb::set_leak_warnings(false);  // a node may end while a request is under way
    nb::class_<TlsContext>(m, "TlsContext")
        .def(nb::init<const std::string&, const std::string&, const std::string&, int>(), nb::arg("certificate"),
             nb::arg("private_key"), nb::arg("ca_certificate"), nb::arg("minimum_version"));
    nb::class_<Server>(m, "Server")
        .def("__init__",
             [](Server* self, size_t target, size_t headers, size_t body, size_t message, size_t pipelined, size_t handshakes,
                double handshake_s, double request_s, double idle_s, double reading_s, std::vector<std::string> kept_headers) {
                 new (self) Server(settings_of(target, headers, body, message, pipelined, handshakes, handshake_s, request_s, idle_s,
                                               reading_s, std::move(kept_headers)));
             },
             nb::kw_only(), nb::arg("target"), nb::arg("headers"), nb::arg("body"), nb::arg("message"), nb::arg("pipelined"),
             nb::arg("handshakes"), nb::arg("handshake_s"), nb::arg("request_s"), nb::arg("idle_s"), nb::arg("reading_s"), nb::arg("kept_headers"))
        .def("use", [](Server& server, std::shared_ptr<TlsContext> context) { server.use(std::move(context)); })
        .def("start", &Server::start, nb::arg("listeners"))
        .def("stop_listening", &Server::stop_listening)
        .def("stop", &Server::stop, nb::call_guard<nb::gil_scoped_release>())
        .def("ready_fd", &Server::ready_fd)
        .def("take", &take)
        .def("living", [](Server& server, nb::bytes tokens) { return as_bytes(server.living(tokens_of(tokens))); })
        .def("is_handed", &Server::is_handed)
        .def("admit", &admit, nb::arg("tokens"), nb::arg("client"))
        .def("answer", &answer, nb::arg("tokens"), nb::arg("status"), nb::arg("head"), nb::arg("body"), nb::arg("closes"))
        .def("answer_keys", &answer_keys, nb::arg("tokens"), nb::arg("ids"), nb::arg("material"), nb::arg("number"),
             nb::arg("key_octets"))
        .def("finish", [](Server& server, nb::bytes tokens) { server.give(command_of(Command::Kind::finish, tokens)); })
        .def("finish_all", [](Server& server) { server.give(command_of(Command::Kind::finish_all, nb::bytes("", 0))); })
        .def("cut", [](Server& server, nb::bytes tokens) { server.give(command_of(Command::Kind::cut, tokens)); });
}
