// The Python face of the loads on a key interface, fast enough that the server is what is measured. qtrunk.plan.bench.load
// and qtrunk.plan.bench.roundtrips say what they mean.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "load.hpp"
#include "roundtrips.hpp"

namespace nb = nanobind;
using namespace load;

namespace {

Found run(const Place& place, nb::bytes request, int connections, double seconds, double warm_up_s, double rate_hz) {
    const Task task{place, {request.c_str(), request.size()}, connections, seconds, warm_up_s, rate_hz};
    const nb::gil_scoped_release released;
    return Load(task).run();
}

std::pair<uint64_t, double> round_trips(const Place& initiator, const Place& target, nb::bytes get, nb::bytes collect,
                                        int connections, double seconds) {
    const std::string get_(get.c_str(), get.size()), collect_(collect.c_str(), collect.size());
    const nb::gil_scoped_release released;
    return RoundTrips(initiator, target, get_, collect_, connections, seconds).run();
}

}  // namespace

NB_MODULE(_load, m) {
    nb::class_<Place>(m, "Place")
        .def("__init__",
             [](Place* self, std::string host, int port, std::string certificate, std::string private_key, std::string ca_certificate) {
                 new (self) Place{std::move(host), port, std::move(certificate), std::move(private_key), std::move(ca_certificate)};
             },
             nb::kw_only(), nb::arg("host"), nb::arg("port"), nb::arg("certificate"), nb::arg("private_key"), nb::arg("ca_certificate"));
    m.def("run", &run, nb::kw_only(), nb::arg("place"), nb::arg("request"), nb::arg("connections"), nb::arg("seconds"),
          nb::arg("warm_up_s"), nb::arg("rate_hz"));
    m.def("round_trips", &round_trips, nb::kw_only(), nb::arg("initiator"), nb::arg("target"), nb::arg("get"), nb::arg("collect"),
          nb::arg("connections"), nb::arg("seconds"));
}
